"""模型的零件：每个文件一个概念，`models/` 用它们拼出 Llama 和 Qwen3。

The parts of a model: one concept a file; `models/` builds Llama and Qwen3 from them.
"""
