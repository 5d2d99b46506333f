# What most people change, for every host of the inventory. Uncomment a line to change it; docs/SETTINGS.md lists
# every setting with its bounds, under the same headings. A host's own value, in inventory.py, wins.

## Model

# "qwen2.5-1.5b-instruct" (Apache-2.0, 1.7 GB of RAM), "qwen2.5-3b-instruct" (2.8 GB, non-commercial licence; raise
# memory_goal_mib to 2800), or "custom" with the four lines below.
# model = "qwen2.5-3b-instruct"
# model_name = "my-model"
# model_url = "https://example.net/my-model.gguf"
# model_sha256 = "…64 hexadecimal digits…"
# model_size_bytes = 1_000_000_000

## Service

# Context length in tokens. 2048 serves utility requests only; OpenClaw's agent turns want 16384.
# context_tokens = 2048

# Limits of the model's service.
# memory_max_mib = 3072
# cpu_quota_percent = 200

## Gateway

# Port of the API on 127.0.0.1.
# api_port = 8765

## Cloud

# A cloud provider for what is too large for the host; docs/API.md says which requests go where. Its key does not
# belong here: export LOCAL_LLM_CLOUD_KEY before you deploy, or name a file that holds it.
# cloud_url = "https://api.example.com/v1"
# The provider's API: "openai", or "anthropic" (/v1/messages).
# cloud_api = "anthropic"
# cloud_models = ["large-model", "small-model"]
# cloud_key_file = "~/.config/local-llm/cloud-key"

# Requests a minute that the provider gets at most. Every program of the host can use it.
# cloud_requests_per_minute = 60

## Routing

# Tokens: prompts shorter than the first go to the host first; longer ones than the second, and longer answers than the
# third, go to the cloud first.
# route_short_prompt_tokens = 500
# route_long_prompt_tokens = 2000
# route_long_answer_tokens = 1024

## Firewall

# Ports open to the world besides SSH, for what else runs on the host.
# firewall_allowed_ports = ["80/tcp", "443/tcp"]
