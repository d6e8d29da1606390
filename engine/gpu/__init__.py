"""同一个循环，更快的走法：主机与 GPU 重叠，解码步重放 CUDA graph。先读 `engine/llm_engine.py`。

The same loop, faster: the host overlaps with the GPU, and decode steps replay CUDA graphs. Read
`engine/llm_engine.py` first.
"""
