"""Measurements: ``make bench`` (against bare QEMU and libvirt) and ``make soak`` (what leaks)."""
