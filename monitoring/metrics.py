"""Every metric that ExpertMesh exports, declared once; `tests/unit/test_metrics.py` holds
dashboards, rules and docs to it.

Labels: `layer` and `expert` are numbers from 0. `shard`, `replica` (of the attention part) and
`gateway` are places from 0, which a successor takes over; the info metrics say who has one now.
"""

from monitoring.metric import (
    DISPATCH_S,
    ENGINE_TTFT_S,
    INTER_TOKEN_S,
    REQUEST_S,
    TTFT_S,
    counter,
    gauge,
    histogram,
)

SERVICE = (
    counter(
        "requests",
        "Requests that ended, by route and outcome (ok, rejected, client_error, server_error, "
        "cancelled).",
        "How many fail?",
        *("route", "outcome"),
    ),
    histogram(
        "ttft_seconds",
        "From a request's arrival at the gateway to its first token there; of one that is not "
        "streamed, to its answer.",
        "How long do users look at an empty answer?",
        TTFT_S,
    ),
    histogram(
        "request_seconds",
        "From a request's arrival at the gateway to its end, whatever the outcome.",
        "How long do requests take?",
        REQUEST_S,
    ),
    counter(
        "takeovers",
        "Requests that another attention replica took over from one that died, by moment "
        "(before_answer, in_stream).",
        "Would users have noticed a death?",
        "moment",
    ),
    gauge("requests_in_flight", "Requests that a gateway has open.", "How busy is it?", "gateway"),
    gauge("requests_waiting", "Of them, those that wait their turn.", "Is it full?", "gateway"),
    counter(
        "prompt_tokens",
        "Prompt tokens that engines have taken in; a prompt asked for with n answers counts n "
        "times.",
        "How much is read?",
    ),
    counter("output_tokens", "Tokens generated.", "How much is written?"),
    histogram(
        "engine_ttft_seconds",
        "From a request's arrival at an attention replica to its first token in the engine.",
        "Is a late first token the engine's, or of what is before it?",
        ENGINE_TTFT_S,
    ),
    histogram(
        "inter_token_seconds",
        "Between two tokens of a request, in the engine.",
        "How fluently do answers come?",
        INTER_TOKEN_S,
    ),
    gauge(
        "engine_running_requests", "Sequences in a batch.", "How full are the batches?", "replica"
    ),
    gauge("engine_waiting_requests", "Sequences that wait for it.", "Is there a queue?", "replica"),
    gauge(
        "kv_cache_used_ratio",
        "Of an engine's KV cache, 0 to 1.",
        "Will requests wait for memory?",
        "replica",
    ),
    counter(
        "engine_preemptions",
        "Sequences put back into the queue because the KV cache was full.",
        "Is work thrown away for lack of KV cache?",
    ),
)

LOAD = (
    counter(
        "layer_rows",
        "(token, choice) pairs that the gate of a layer has sent to experts.",
        "How much work do the layers' experts have?",
        "layer",
    ),
    counter(
        "expert_rows",
        "(token, choice) pairs that the gate has sent to an expert.",
        "Which experts are hot?",
        *("layer", "expert"),
    ),
    gauge(
        "expert_replicas",
        "Shards that hold it.",
        "Is a hot expert held often?",
        *("layer", "expert"),
    ),
    gauge(
        "layer_replicas_min",
        "Replicas of its least held one.",
        "Who suffers from the next death?",
        "layer",
    ),
    gauge(
        "layer_imbalance_ratio",
        "Most loaded shard over the mean of the shards, by the rows that they computed for the "
        "layer lately (half-life controller.load_half_life_s); 1 is even.",
        "How much longer than need be does a layer take?",
        "layer",
    ),
    counter("layer_steps", "Batches computed.", "How often does it run?", "layer"),
    counter(
        "layer_activated_experts",
        "Experts with at least one row, added up over batches; by layer_steps it is their mean.",
        "How many experts does a step touch?",
        "layer",
    ),
    counter("shard_rows", "Rows computed.", "Do all do their part?", "shard"),
    counter("shard_batches", "Kernel calls.", "How large are they?", "shard"),
    gauge(
        "shard_slots",
        "Room for one expert in one layer, used or free.",
        "Is there room for more replicas?",
        *("shard", "state"),
    ),
)

DATA_PLANE = (
    histogram(
        "dispatch_seconds",
        "From the gate's choice to the combined rows, for one layer of one batch.",
        "What does it cost that experts are elsewhere?",
        DISPATCH_S,
    ),
    counter(
        "dispatch_stage_seconds",
        "Where that time goes: choose, send, shared (shared experts, while rows are away), wait, "
        "combine.",
        "Which part of a layer's time should be worked on?",
        "stage",
    ),
    counter(
        "dispatch_shard_seconds",
        "Of shared and wait, what the layer's slowest shard spent in its queue and in its kernel.",
        "Do layers wait for kernels, for queues, or for the way there and back?",
        "stage",
    ),
    counter(
        "dispatch_rows",
        "Rows sent (each token once a shard) and returned (each choice once).",
        "How much is on the way?",
        "direction",
    ),
    counter(
        "dispatch_bytes",
        "Bytes of those rows, without headers.",
        "How much network does a token need?",
        "direction",
    ),
    counter(
        "dispatch_row_seconds",
        "Rows times the seconds that they were away; its rate is the rows in flight on average.",
        "How many rows are in flight?",
    ),
    counter("dispatch_sends", "Messages with rows.", "How many messages does a layer need?"),
    counter(
        "dispatch_resends",
        "Sends that repeat rows, since a shard was lost or refused them.",
        "Do rows have to be sent again?",
    ),
    counter(
        "dispatch_late_answers",
        "Answers dropped because the rows had been sent elsewhere meanwhile.",
        "Are shards given up too early?",
    ),
    counter(
        "dispatch_refused",
        "Sends that a shard refused, for instance because the expert had just moved.",
        "Do tables and shards disagree?",
    ),
    counter(
        "dispatch_shards_lost",
        "Shards that an attention replica gave up: lost (no answer) or wrong (a bad one).",
        "Do shards fail under load?",
        "reason",
    ),
    counter(
        "shard_queue_seconds",
        "Row batches' time in the queue of the shard at a place, added up.",
        "Which shard is a queue?",
        "shard",
    ),
    counter(
        "shard_compute_seconds",
        "Kernel time of the shard at a place; its rate is the share of time that it computes.",
        "How busy is each shard?",
        "shard",
    ),
)

CONTROL = (
    gauge(
        "controller_up",
        "1 if the controller answered this scrape; if 0, nothing else is reported.",
        "Is anybody there to repair and rebalance?",
    ),
    gauge(
        "controller_start_time_seconds",
        "Unix time at which the controller's totals began.",
        "Has the controller been restarted?",
    ),
    gauge(
        "table_version",
        "Table in use, by process: controller, and attention-0, attention-1 and so on.",
        "Does everybody use the same table?",
        "process",
    ),
    gauge(
        "table_behind_seconds",
        "For how long an attention replica could have used a newer table.",
        "Does a replica no longer follow?",
        "replica",
    ),
    counter(
        "placements",
        "Placements that were judged, by cause (members changed, loads, asked for) and outcome.",
        "Does it rebalance, and why not?",
        *("cause", "outcome"),
    ),
    counter("placement_moves", "Moves of accepted placements.", "How much is moved?"),
    gauge(
        "moves_left", "Experts that are still to be loaded.", "Is the pool where it wants to be?"
    ),
    counter("shard_loads", "Experts loaded.", "Who is being filled?", "shard"),
    counter("shard_load_seconds", "Time spent on loading.", "What does a move cost?", "shard"),
    counter(
        "shard_read_bytes", "Bytes read from the checkpoint.", "Is storage the limit?", "shard"
    ),
    gauge("redundancy_target", "pool.redundancy.", "What was asked for?"),
    gauge(
        "experts_without_replica",
        "Experts, over all layers, that no live shard holds; requests that need one wait.",
        "Is the model whole?",
    ),
    gauge(
        "experts_below_redundancy",
        "Experts, over all layers, with fewer replicas than asked for.",
        "Would another death be survived?",
    ),
    counter(
        "degraded_seconds",
        "Seconds with an expert below its redundancy, since the pool was first complete.",
        "How much of the time is the pool at risk?",
    ),
    counter(
        "unavailable_seconds",
        "Seconds with an expert without any replica, since the pool was first complete.",
        "How much of the time was the model not whole?",
    ),
    gauge(
        "shards",
        "Shards by state: serving, loading, empty, suspected.",
        "Who is there, and in which state?",
        "state",
    ),
    gauge(
        "shards_wanted",
        "Shards that there should be: pool.shards, or what scaling asks for.",
        "Are all there?",
    ),
    counter(
        "process_starts",
        "Processes that began after the controller's totals did, by kind (shard, replica, "
        "gateway); while the pool is not being enlarged, its increase is restarts.",
        "What keeps dying?",
        "kind",
    ),
    gauge(
        "shard_info",
        "1; which process has a shard's place now, and on which host.",
        "Which process do I look at?",
        *("shard", "shard_id", "host"),
    ),
    gauge("shard_resident_bytes", "A shard's memory.", "Will it fit?", "shard"),
    gauge("shard_weight_bytes", "Of that, experts' weights.", "What are shards full of?", "shard"),
)

GROUPS = {
    "Service": SERVICE,
    "Load": LOAD,
    "Data plane": DATA_PLANE,
    "Control plane": CONTROL,
}
METRICS = {metric.name: metric for group in GROUPS.values() for metric in group}
