"""The attention side: vLLM's engine with its routed experts elsewhere."""
