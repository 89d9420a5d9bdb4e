"""What was loaded once works without a network."""

LOAD = """
import sys, torch
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation
processor = AutoImageProcessor.from_pretrained("user/model", trust_remote_code=True)
model = AutoModelForSemanticSegmentation.from_pretrained("user/model", trust_remote_code=True)
with torch.no_grad():
    torch.manual_seed(0)
    print("sum", model(**processor(torch.rand(3, 40, 50), do_rescale=False, return_tensors="pt")).logits.sum().item())
"""


def test_model_processor_and_code_come_from_the_cache(hub, saved, run_client):
    hub.add("user/model", {path.name: path.read_bytes() for path in saved.iterdir()})
    online = run_client(LOAD, bare=True).stdout
    hub.fail["/"] = 503
    hub.requests.clear()
    offline = run_client(LOAD, bare=True, HF_HUB_OFFLINE="1").stdout
    assert "sum" in online and offline == online
    assert not hub.requests
