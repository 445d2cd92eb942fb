"""A server of TensorFlow Serving's protocol: its REST API and gRPC services, over models in their base paths.

Requests come in by `rest` and `grpc_services`, which turn them into arrays and the answers back; `prediction` says what
a request means, `models` which version answers, `saved_model_servable` runs it, and `batching` joins requests.
"""
