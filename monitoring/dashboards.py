"""What the four Grafana dashboards show; `render_grafana` makes JSON of it."""

from monitoring.panels import Panel, Query, one, quantiles, sum_rate

X = "expertmesh_"

SERVICE = (
    Panel("Output tokens per second", one("expertmesh:output_tokens:rate1m{…}"), "ops", "stat", 6),
    Panel("First token, p95, 5 min", one("expertmesh:ttft_seconds:p95_5m{…}"), "s", "stat", 6),
    Panel(
        "Between tokens, p95, 5 min",
        one("expertmesh:inter_token_seconds:p95_5m{…}"),
        *("s", "stat", 6),
    ),
    Panel("Failed, 5 min", one("expertmesh:errors:ratio_rate5m{…}"), "percentunit", "stat", 6),
    Panel(
        "Requests by outcome",
        one(sum_rate(f"{X}requests_total", "outcome"), "{{outcome}}"),
        "reqps",
    ),
    Panel(
        "Requests taken over from a dead attention replica",
        one(sum_rate(f"{X}takeovers_total", "moment"), "{{moment}}"),
        "reqps",
    ),
    Panel("Requests by route", one(sum_rate(f"{X}requests_total", "route"), "{{route}}"), "reqps"),
    Panel(
        "Tokens",
        (
            Query(sum_rate(f"{X}prompt_tokens_total"), "prompt"),
            Query(sum_rate(f"{X}output_tokens_total"), "output"),
        ),
        "ops",
        note="As the engines count them, which is what clients are told as usage.",
    ),
    Panel("Time to first token", quantiles(f"{X}ttft_seconds"), "s"),
    Panel(
        "Time to first token in the engine",
        quantiles(f"{X}engine_ttft_seconds"),
        "s",
        note="What the gateway's has more is on the way there and back, or waiting for a turn.",
    ),
    Panel("Between tokens", quantiles(f"{X}inter_token_seconds"), "s"),
    Panel("Whole requests", quantiles(f"{X}request_seconds"), "s"),
    Panel(
        "Requests in flight and waiting",
        (
            Query(f"sum ({X}requests_in_flight{{…}})", "open at the gateway"),
            Query(f"sum ({X}requests_waiting{{…}})", "waiting at the gateway"),
            Query(f"sum ({X}engine_running_requests{{…}})", "in a batch"),
            Query(f"sum ({X}engine_waiting_requests{{…}})", "waiting for an engine"),
        ),
    ),
    Panel(
        "KV cache in use", one(f"{X}kv_cache_used_ratio{{…}}", "replica {{replica}}"), "percentunit"
    ),
    Panel("Preemptions", one(sum_rate(f"{X}engine_preemptions_total")), "ops"),
    Panel(
        "First tokens later than 5 s",
        (
            Query("expertmesh:slow_first_tokens:ratio_rate5m{…}", "5 min"),
            Query("expertmesh:slow_first_tokens:ratio_rate1h{…}", "1 h"),
        ),
        "percentunit",
    ),
    Panel(
        "First-token times",
        one(sum_rate(f"{X}ttft_seconds_bucket", "le"), "{{le}}"),
        *("s", "heatmap", 16),
    ),
)

EXPERTS = (
    Panel(
        "Max over mean of the shards, mean of the layers",
        one("expertmesh:layer_imbalance_ratio:mean{…}"),
        *("short", "stat", 6),
    ),
    Panel(
        "Experts without a replica",
        one(f"sum ({X}experts_without_replica{{…}})"),
        *("short", "stat", 6),
    ),
    Panel(
        "Experts below redundancy",
        one(f"sum ({X}experts_below_redundancy{{…}})"),
        *("short", "stat", 6),
    ),
    Panel("Redundancy wanted", one(f"max ({X}redundancy_target{{…}})"), "short", "stat", 6),
    Panel(
        "Load by layer (row) and expert (column), rows per second",
        one(sum_rate(f"{X}expert_rows_total", "layer, expert")),
        *("short", "matrix", 24),
        note="With monitoring.per_expert: top only the ten hottest of each layer have figures.",
    ),
    Panel(
        "Hottest experts",
        one(
            f"topk(10, {sum_rate(f'{X}expert_rows_total', 'layer, expert')})",
            "layer {{layer}} expert {{expert}}",
        ),
        "ops",
    ),
    Panel("Imbalance by layer", one(f"topk(10, {X}layer_imbalance_ratio{{…}})", "layer {{layer}}")),
    Panel(
        "Experts activated in a step",
        one("expertmesh:layer_activated_experts:mean5m{…}", "layer {{layer}}"),
    ),
    Panel(
        "Replicas of the experts that are held most",
        one(f"topk(10, {X}expert_replicas{{…}})", "layer {{layer}} expert {{expert}}"),
    ),
    Panel(
        "Fewest replicas of an expert",
        one(f"bottomk(10, {X}layer_replicas_min{{…}})", "layer {{layer}}"),
    ),
    Panel(
        "Rows by layer", one(sum_rate(f"{X}layer_rows_total", "layer"), "layer {{layer}}"), "ops"
    ),
    Panel(
        "Rows by shard", one(sum_rate(f"{X}shard_rows_total", "shard"), "shard {{shard}}"), "ops"
    ),
    Panel(
        "Slots", one(f"sum by (shard, state) ({X}shard_slots{{…}})", "shard {{shard}} {{state}}")
    ),
)

DATA_PLANE = (
    Panel("A layer, from choosing to combining", quantiles(f"{X}dispatch_seconds"), "s"),
    Panel(
        "Where a layer's time goes",
        one(
            f"{sum_rate(f'{X}dispatch_stage_seconds_total', 'stage')} / ignoring(stage) "
            f"group_left () {sum_rate(f'{X}dispatch_seconds_count')}",
            "{{stage}}",
        ),
        "s",
    ),
    Panel(
        "Of that, in the slowest shard",
        one(
            f"{sum_rate(f'{X}dispatch_shard_seconds_total', 'stage')} / ignoring(stage) "
            f"group_left () {sum_rate(f'{X}dispatch_seconds_count')}",
            "{{stage}}",
        ),
        "s",
    ),
    Panel("Rows", one(sum_rate(f"{X}dispatch_rows_total", "direction"), "{{direction}}"), "ops"),
    Panel("Bytes", one(sum_rate(f"{X}dispatch_bytes_total", "direction"), "{{direction}}"), "Bps"),
    Panel("Rows in flight, mean", one(sum_rate(f"{X}dispatch_row_seconds_total"))),
    Panel(
        "Sends a layer",
        one(f"{sum_rate(f'{X}dispatch_sends_total')} / {sum_rate(f'{X}dispatch_seconds_count')}"),
    ),
    Panel(
        "Sent again, late, refused",
        (
            Query(sum_rate(f"{X}dispatch_resends_total"), "sent again"),
            Query(sum_rate(f"{X}dispatch_late_answers_total"), "late answers dropped"),
            Query(sum_rate(f"{X}dispatch_refused_total"), "refused"),
        ),
        "ops",
    ),
    Panel(
        "Shards given up",
        one(sum_rate(f"{X}dispatch_shards_lost_total", "reason"), "{{reason}}"),
        "ops",
    ),
    Panel(
        "Waiting that shared experts fill",
        one("expertmesh:shared_experts_overlap:ratio_rate5m{…}"),
        "percentunit",
    ),
    Panel(
        "Shards computing",
        one(sum_rate(f"{X}shard_compute_seconds_total", "shard"), "shard {{shard}}"),
        "percentunit",
    ),
    Panel(
        "Requests in a shard's queue, mean",
        one(sum_rate(f"{X}shard_queue_seconds_total", "shard"), "shard {{shard}}"),
    ),
    Panel(
        "Rows in a kernel call",
        one(
            f"{sum_rate(f'{X}shard_rows_total', 'shard')} / "
            f"{sum_rate(f'{X}shard_batches_total', 'shard')}",
            "shard {{shard}}",
        ),
    ),
)

CLUSTER = (
    Panel("Controller", one(f"min ({X}controller_up{{…}})"), "bool_on_off", "stat", 6),
    Panel(
        "Controller up for",
        one(f"time() - max ({X}controller_start_time_seconds{{…}})"),
        *("s", "stat", 6),
    ),
    Panel("Shards missing", one("expertmesh:shards_missing{…}"), "short", "stat", 6),
    Panel("Moves left", one(f"sum ({X}moves_left{{…}})"), "short", "stat", 6),
    Panel(
        "Shards by state",
        (
            Query(f"sum by (state) ({X}shards{{…}})", "{{state}}"),
            Query(f"sum ({X}shards_wanted{{…}})", "wanted"),
        ),
    ),
    Panel("Table versions", one(f"{X}table_version{{…}}", "{{process}}")),
    Panel(
        "Replicas behind the newest table",
        one(f"{X}table_behind_seconds{{…}}", "replica {{replica}}"),
        "s",
    ),
    Panel(
        "Placements",
        one(
            f"sum by (cause, outcome) (increase({X}placements_total{{…}}[w]))",
            "{{cause}}: {{outcome}}",
        ),
    ),
    Panel(
        "Moves",
        (
            Query(f"sum (increase({X}placement_moves_total{{…}}[w]))", "decided"),
            Query(f"sum (increase({X}shard_loads_total{{…}}[w]))", "experts loaded"),
        ),
    ),
    Panel(
        "Seconds a load",
        one(
            f"sum by (shard) ({X}shard_load_seconds_total{{…}}) / "
            f"sum by (shard) ({X}shard_loads_total{{…}})",
            "shard {{shard}}",
        ),
        "s",
    ),
    Panel(
        "Read from the checkpoint",
        one(sum_rate(f"{X}shard_read_bytes_total", "shard"), "shard {{shard}}"),
        "Bps",
    ),
    Panel(
        "Degraded, unavailable, of the time",
        (
            Query(sum_rate(f"{X}degraded_seconds_total"), "below redundancy"),
            Query(sum_rate(f"{X}unavailable_seconds_total"), "an expert missing"),
        ),
        "percentunit",
    ),
    Panel(
        "Processes started",
        one(f"sum by (kind) (increase({X}process_starts_total{{…}}[w]))", "{{kind}}"),
    ),
    Panel(
        "Memory of shards",
        (
            Query(f"{X}shard_resident_bytes{{…}}", "shard {{shard}}"),
            Query(f"{X}shard_weight_bytes{{…}}", "shard {{shard}}, weights"),
        ),
        "bytes",
    ),
    Panel(
        "Serve: healthy replicas",
        one(
            'sum by (deployment) (ray_serve_deployment_replica_healthy{job="ray"})',
            "{{deployment}}",
        ),
    ),
    Panel(
        "Serve: requests that wait for a replica",
        one(
            'sum by (deployment) (ray_serve_deployment_queued_queries{job="ray"})', "{{deployment}}"
        ),
    ),
    Panel(
        "Serve: requests at replicas",
        one(
            'sum by (deployment) (ray_serve_replica_processing_queries{job="ray"})',
            "{{deployment}}",
        ),
    ),
    Panel(
        "Hosts: processors in use",
        one('avg by (ip) (ray_node_cpu_utilization{job="ray"}) / 100', "{{ip}}"),
        "percentunit",
    ),
    Panel(
        "Hosts: memory in use", one('max by (ip) (ray_node_mem_used{job="ray"})', "{{ip}}"), "bytes"
    ),
    Panel("Who is which shard", one(f"{X}shard_info{{…}}"), "short", "table", 8),
)
