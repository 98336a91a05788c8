"""The HTTP doors: native, MLflow, Open Inference Protocol, metrics."""
