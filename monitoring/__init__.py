"""What is measured: metrics, totals over processes, Prometheus and Grafana files."""
