# For the hosts that inventory.py lists in `optimised`: what a host can bear after a quiet week. `local-llm report` on
# the host says whether it was one: the memory left over, kills, response times. Settings of group_data/all.py hold as
# well; where both set one, these win.

# A larger model: better answers, about twice the time for each token. With a KV cache of half the precision it keeps to
# the default goal of 2560 MiB. Its licence, Qwen Research, allows NON-COMMERCIAL USE ONLY: otherwise put a # before it.
model = "qwen2.5-3b-instruct"
kv_cache_type = "q8_0"

# Swap, for OpenClaw and what else runs there; the model itself never swaps.
swap_file_mib = 4096

# Prometheus and the node exporter, served by the gateway. docs/MONITORING.md has a dashboard for Grafana.
prometheus = True

# Routing between host and cloud, and the weekly drill of the fallback, come with a cloud provider: see all.py.
