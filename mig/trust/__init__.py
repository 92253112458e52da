"""Who may speak with us: the cluster's keys, this node's identity, the identities of the others, encrypted connections."""
