# What most people change, for every host of the inventory. Uncomment a line to change it; docs/SETTINGS.md lists
# every setting with its bounds. A host's own value, in inventory.py, wins.

# Model: "qwen2.5-1.5b-instruct" (Apache-2.0, 1.7 GB of RAM), "qwen2.5-3b-instruct" (2.8 GB, non-commercial
# licence; raise memory_goal_mib to 2800), or "custom" with the four lines below.
# model = "qwen2.5-3b-instruct"
# model_name = "my-model"
# model_url = "https://example.net/my-model.gguf"
# model_sha256 = "…64 hexadecimal digits…"
# model_size_bytes = 1_000_000_000

# Context length in tokens. 2048 serves utility requests only; OpenClaw's agent turns want 16384.
# context_tokens = 2048

# Limits of the model's service.
# memory_max_mib = 3072
# cpu_quota_percent = 200

# Port of the API on 127.0.0.1.
# api_port = 8765

# Ports open to the world besides SSH, for what else runs on the host.
# firewall_allowed_ports = ["80/tcp", "443/tcp"]
