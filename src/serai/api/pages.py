def render_page(document):
    return ""
