"""What MLflow's client does with prompts, told as JSON for test_mlflow_prompts.py."""

from __future__ import annotations

import json
import warnings
from typing import Any

warnings.filterwarnings("ignore")

import mlflow  # noqa: E402 - it warns while it loads
from mlflow import MlflowClient  # noqa: E402
from mlflow.exceptions import MlflowException  # noqa: E402


def refusal(act: Any, *given: Any, **named: Any) -> str:
    try:
        act(*given, **named)
    except MlflowException as error:
        return str(error)
    return ""


def told() -> dict[str, Any]:
    genai, client = mlflow.genai, MlflowClient()
    first = genai.register_prompt(
        name="greet", template="Hello {{name}}", commit_message="first", tags={"team": "growth"}
    )
    second = genai.register_prompt(name="greet", template="Hi {{name}}!")
    chat = [{"role": "user", "content": "{{question}}"}]
    genai.register_prompt(name="chat", template=chat)
    genai.set_prompt_alias("greet", "production", 1)
    genai.set_prompt_tag("greet", "k", "v")
    genai.set_prompt_version_tag("greet", 2, "reviewed", "yes")
    with mlflow.start_run() as run:
        genai.load_prompt("greet", version=1)
    client.create_registered_model("plain")
    found = {
        "numbers": [first.version, second.version],
        "latest": genai.load_prompt("greet").template,
        "by_number": genai.load_prompt("prompts:/greet/1").template,
        "by_alias": genai.load_prompt("prompts:/greet@production").format(name="Ann"),
        "chat": genai.load_prompt("chat").template,
        "message": genai.load_prompt("greet", version=1).commit_message,
        "tags": genai.get_prompt_tags("greet"),
        "version_tags": genai.load_prompt("greet", version=2).tags,
        "prompts": sorted(prompt.name for prompt in genai.search_prompts()),
        "named": [prompt.name for prompt in genai.search_prompts("name = 'greet'")],
        "versions": [version.version for version in client.search_prompt_versions("greet")],
        "models": [model.name for model in client.search_registered_models()],
        "linked": client.get_run(run.info.run_id).data.tags["mlflow.linkedPrompts"],
        "missing": refusal(genai.load_prompt, "nothing"),
        "allowed": genai.load_prompt("nothing", allow_missing=True),
        "as_source": refusal(client.create_model_version, "plain", "models:/greet/1"),
    }
    client.delete_prompt_version("chat", "1")
    client.delete_prompt("chat")
    found["after"] = sorted(prompt.name for prompt in genai.search_prompts())
    return found


if __name__ == "__main__":
    print(json.dumps(told()))
