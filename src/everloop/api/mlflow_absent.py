"""What MLflow's server has and this one does not: named, so that nobody looks for a typing error.

The status stays 404 and the code ENDPOINT_NOT_FOUND: clients take these for a server that is older
than they are, and go on without, while a 5xx would be tried again for minutes.
"""

from __future__ import annotations

import re

__all__ = ["GRAPHQL", "why_absent"]

GRAPHQL = "GraphQL, which MLflow's own pages ask, is not served here; use the REST API."

#: What a path below ``mlflow/`` begins with -> what that is, and what to use.
_ABSENT = (
    (r"gateway|endpoints", "The AI gateway (endpoints, secrets, budgets, guardrails)", ""),
    (r"runs/create-promptlab-run", "The prompt lab", "log the run and its files with the client"),
    (r"scorers", "Registered scorers", "evaluate in the client"),
    (r"datasets", "Evaluation datasets", "keep them with ev.commit or log them as inputs of runs"),
    (r"labell?ing|label-schemas|review", "Labelling of traces", "assess traces by assessments"),
    (r"issues", "Issues", "assess traces by an assessment of the kind issue"),
    (r"prompt-optimization|jobs|genai|assistant", "Jobs of MLflow's server", "run in the client"),
    (r"workspaces", "Workspaces of MLflow", "give each team a server or its rights here"),
    (r"mcp-servers", "The registry of MCP servers", ""),
    (r"skills", "The registry of skills", ""),
)
_KNOWN = [(re.compile(rf"mlflow/({start})"), what, instead) for start, what, instead in _ABSENT]


def why_absent(path: str) -> str:
    """What to say of a path, below ``/api/2.0/``, that has no handler."""
    for pattern, what, instead in _KNOWN:
        if pattern.match(path):
            return f"{what}: not served here{f'; {instead}' if instead else ''}."
    return "This endpoint is not served here."
