"""Files and functions stay small enough to be read; a long one says why in its docstring."""

from sizes import FILE_LIMIT, FUNCTION_LIMIT, REASON, measure, report


def test_no_file_or_function_is_long_without_a_reason() -> None:
    files, functions = measure()
    print(report())
    too_long = [each for each in files if each.lines > FILE_LIMIT and not each.has_reason]
    too_long += [each for each in functions if each.lines > FUNCTION_LIMIT and not each.has_reason]
    said = "\n".join(f"{each.lines} lines: {each.place}" for each in too_long)
    assert not too_long, f"split it, or say in its docstring: '{REASON} …'\n{said}"
