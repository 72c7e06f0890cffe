"""What stock Hugging Face clients ask of a hub, at its root: `HF_ENDPOINT` and `HF_TOKEN` are all they need.

Read ``asking`` (how a request becomes a repository and a commit), ``refusals`` (errors that clients
know), then ``repos``, ``trees``, ``uploads``, ``xet`` and ``files``. Nothing is decided here: rules are
in ``services``.
"""
