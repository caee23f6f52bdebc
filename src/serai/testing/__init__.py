"""What the pytest plugin is made of: machines for tests, forked from a warm image, gone afterwards.

    wishes      which machine a test wants, and the name of the warm image for it
    household   which daemon it comes from; who else uses that; what killed sessions left
    warmth      the warm image: made once, by one process, kept for later sessions
    evidence    what tells why a test failed: console, screen, events
    session     all of it together, for one pytest process

No module here imports pytest, and only ``serai.pytest_plugin`` imports this, when a guest is wanted.
"""
