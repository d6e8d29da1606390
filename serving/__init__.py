"""引擎外面的一圈：请求怎样进来，答案怎样出去。从 `llm.py` 读起。

The ring around the engine: how requests come in and answers go out. Start at `llm.py`.
"""
