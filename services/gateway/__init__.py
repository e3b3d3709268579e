"""The HTTP side: who may do what and how much, and relaying requests to attention replicas.

vLLM's own routes answer, in the attention replicas; nothing of what they do is done here.
"""
