"""写成 `org/name` 的模型：到 Hugging Face 的本地缓存里找，从不下载。

你在这里：`engine/config.py` 认出这是一个 hub id；本地的文件夹和内置的模型用不着这个文件。

Models written `org/name`: looked up in the local cache of Hugging Face, and never downloaded.

You are here: `engine/config.py` has seen that this is a hub id; local folders and embedded models do without this file.
"""

from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError

from models.fields import ModelLoadError


def cached_folder(name: str) -> Path:
    """缓存里的文件夹。

    The folder in the cache.

    Raises:
        ModelLoadError: 缓存里没有，消息里写明怎样下载；not in the cache; the message says how to download
    """
    try:
        # `local_files_only=True`：只查本地缓存，从不联网；下载几 GB 的东西该由用户自己决定。
        # `local_files_only=True`: only the local cache, never the network; downloading gigabytes is for the user to
        # decide.
        return Path(snapshot_download(name, local_files_only=True))
    except (OSError, HFValidationError):
        raise ModelLoadError(
            f"model {name} is neither a folder nor in the local cache: download it with 'hf download {name}'"
        ) from None
