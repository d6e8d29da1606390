#!/usr/bin/env bash
# 下载 Llama-3.2-3B-Instruct，只要推理需要的文件。中断后再运行一次就会接着下载。
# Download Llama-3.2-3B-Instruct, only the files that inference needs. Run it again to resume after a break.
set -euo pipefail

REPO="meta-llama/Llama-3.2-3B-Instruct"
PAGE="https://huggingface.co/$REPO"

# 每条消息先中文后英文。
# Every message is in Chinese first, then in English.
say() {
    printf '%s\n%s\n' "$1" "$2"
}

fail() {
    say "$@" >&2
    exit 1
}

usage() {
    say "用法：./llama3-2_3B.sh [DIR]    下载到 DIR，缺省为 ./Llama-3.2-3B-Instruct（约 6.5 GB）" \
        "Usage: ./llama3-2_3B.sh [DIR]    download into DIR, by default ./Llama-3.2-3B-Instruct (about 6.5 GB)"
}

case "${1-}" in
    -h | --help)
        usage
        exit 0
        ;;
    -*)
        usage >&2
        exit 2
        ;;
esac
if [ "$#" -gt 1 ]; then
    usage >&2
    exit 2
fi
dir="${1:-Llama-3.2-3B-Instruct}"

# README 的安装命令把 `hf` 装进 `.venv`，但不一定激活了它。
# The README's set-up command puts `hf` into `.venv`, which may not be active.
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
hf="$(command -v hf || true)"
if [ -z "$hf" ] && [ -x "$here/.venv/bin/hf" ]; then
    hf="$here/.venv/bin/hf"
fi
if [ -z "$hf" ]; then
    fail "找不到 hf 命令。请安装：python3 -m pip install -U huggingface_hub" \
        "The hf command is missing. Install it: python3 -m pip install -U huggingface_hub"
fi

# 有的旧版本未登录时也返回 0，所以还要看它打印了什么。
# Some older versions return 0 without a login too, so what it prints counts as well.
status=0
answer="$("$hf" auth whoami 2>&1)" || status=$?
if [ "$status" -ne 0 ] || grep -qi "not logged in" <<<"$answer"; then
    if grep -qiE "not logged in|invalid|unauthorized|401" <<<"$answer"; then
        fail "还没有登录，或者令牌已失效。请运行：hf auth login" \
            "You are not logged in, or your token is no longer valid. Run: hf auth login"
    fi
    tail -n 1 <<<"$answer" >&2
    fail "无法确认登录状态，请检查网络后重试。" "The login could not be checked; check the network and try again."
fi

# 先取一个很小的文件：没有接受许可的账号在这里就会被拒绝，而不是在下载几个 GB 的途中。
# A tiny file first: an account without the licence is refused here, and not in the midst of some gigabytes.
if ! answer="$("$hf" download "$REPO" config.json --local-dir "$dir" 2>&1)"; then
    if grep -qiE "gated|access denied|restricted|awaiting|requires approval|authorized list|403" <<<"$answer"; then
        fail "这个账号还没有获得许可。请打开 $PAGE 接受许可，等批准后再运行。" \
            "This account has no access yet. Accept the licence at $PAGE and run again once it is granted."
    fi
    tail -n 3 <<<"$answer" >&2
    fail "无法下载 config.json，原因见上。" "config.json could not be downloaded, for the reason above."
fi

say "正在下载到 $dir（约 6.5 GB）……" "Downloading into $dir (about 6.5 GB) ..."
if ! "$hf" download "$REPO" --local-dir "$dir" \
    --include "*.safetensors" \
    --include "*.safetensors.index.json" \
    --include "tokenizer*" \
    --include "special_tokens_map.json" \
    --include "config.json" \
    --include "generation_config.json"; then
    fail "下载中断。再运行一次同样的命令就会接着下载。" \
        "The download broke off. Run the same command again to resume."
fi

# 太旧的 hf 只认最后一个 `--include`：检查结果，而不是相信它成功了。
# An hf that is too old heeds only the last `--include`: check the result instead of trusting it.
for pattern in config.json tokenizer.json "*.safetensors"; do
    if ! compgen -G "$dir/$pattern" >/dev/null; then
        fail "$dir 里缺少 $pattern。请更新 hf 后重试：python3 -m pip install -U huggingface_hub" \
            "$pattern is missing in $dir. Update hf and try again: python3 -m pip install -U huggingface_hub"
    fi
done
say "完成。运行：python mini_llama.py --model $dir" "Done. Run: python mini_llama.py --model $dir"
