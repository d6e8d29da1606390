"""模型：配置、权重、前向计算。从 `llama.py` 读起；这里什么也不导入，读配置就不必等模型类。

The models: configuration, weights, forward pass. Start at `llama.py`; nothing is imported here, so that reading a
configuration does not wait for the model classes.
"""
