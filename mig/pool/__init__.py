"""Who is in the pool and how loaded they are, as state machines: datagrams and time go in, datagrams and changes come out.

``Pool`` (pool.py) is one node's whole view.  Nothing here opens a socket, reads a clock or draws chance of its own, so the daemon and the
simulator (``omtools.poolsim``) run the very same code.

timing      every interval, with its reason; our own preset and memberlist's published one
message     what a datagram says, as plain objects; ``wire`` turns it into msgpack and back, versioned and append-only
table       what is known of each node, as columns, so that ten thousand views of ten thousand nodes fit into one process
loads       which load entries are worth sending: the freshest
wanted      whose records we lack
rumors      what changed (joined, suspect, dead, left), passed on a few times by everybody who hears it
probes      SWIM's probes with Lifeguard's awareness of oneself
suspicion   how long a node that does not answer may still show that it lives
repair      digests that two nodes compare now and then, so that a rumour that was lost is found
"""
