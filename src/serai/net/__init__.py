"""Networks on this host: bridges and taps, the firewall, DHCP and names, limits, bubbles.

    links      interfaces and namespaces through netlink (pyroute2)
    firewall   our two nftables tables, changed by differences, read back, compared
    dnsmasq    DHCP, names and router advertisements: one process a network
    shaping    how fast a port may be
    forwarding whether the host routes at all; remembered and put back
    bubbles    namespaces in which machines keep their addresses

Each ``ensure_…`` may be called again at any time: it looks, and does what is missing. What belongs
to which daemon is in an interface's alias and a table's name; nothing else is ever touched.
``namespace`` is a name under ``/run/netns``, "" the one that the daemon is in.
"""
