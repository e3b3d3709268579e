"""Pure decisions: which shard serves a row, what each slot holds, what moves when.

No Ray, vLLM, sockets, clock or environment in here: snapshots go in, plans come out.
"""
