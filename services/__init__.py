"""What acts: attention replicas, expert shards, the controller, the transport between them."""
