"""推理引擎：请求怎样排队、怎样分到缓存块、怎样一步一步变成 token。从 `llm_engine.py` 的 `step` 读起。

The inference engine: how requests queue, get cache blocks, and become tokens step by step. Start at `step` in
`llm_engine.py`.
"""
