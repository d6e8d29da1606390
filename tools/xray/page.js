"use strict";
// 页面的全部状态就是这几个变量；改了其中一个，就调用 `draw()` 从头画一遍。
// These few variables are all of the page's state; whoever changes one calls `draw()`, which draws everything anew.
const R = JSON.parse(document.getElementById("recording").textContent);
const state = { step: 0, block: null, request: null, language: (navigator.language || "zh").startsWith("zh") ? "zh" : "en" };
const names = Object.keys(R.requests);
const $ = (id) => document.getElementById(id);

const TEXTS = {
  zh: {
    switch: "English", pool: "物理块", queues: "队列", batch: "这一步的批", events: "这一步发生了什么", texts: "到目前为止的文字",
    attention: "注意力权重", request: "请求", layer: "层", head: "头", first: "第一步 (Home)", back: "上一步 (←)", next: "下一步 (→)", last: "最后 (End)",
    poolHint: "颜色是请求，填色的高度是写到了第几个槽位，斜纹是这一步写入的；×2 是两个请求共用；虚线框是空闲、但内容还能被前缀缓存命中的块。点一个块看它的 token。",
    batchHint: "一行是一个序列：这一步送进模型的 token、写到哪些槽位、采到哪个 token（前 5 名的概率取自原始 logits）。",
    curveHint: "空闲块的曲线（点一下跳到那一步）；红线是抢占", running: "运行", waiting: "等待", none: "（没有）",
    facts: (r) => `${r.backend} 后端 · ${r.device} · ${r.dtype} · ${r.num_blocks} 个块 × ${r.block_size} 个 token · 每步至多 ${r.budget} 个 token · 至多 ${r.max_num_seqs} 个序列同时运行${r.num_ranks > 1 ? ` · ${r.num_ranks} 个 rank 里的 rank ${r.rank}，${r.num_ranks * r.num_heads} 个头里的第 ${span(r.rank * r.num_heads, r.num_heads)} 个` : ""}`,
    truncated: "记录到此为止：再长，文件就太大了；运行本身没有受影响。",
    step: (n, last) => `第 ${n} / ${last} 步`, ended: "运行结束", empty: "这一步没有批：运行已经结束，块都已归还。",
    phases: { schedule: "调度", batch: "摊平", forward: "前向", sample: "采样", update: "更新" },
    free: (n, all) => `空闲 ${n} / ${all}，下一个取走的在最前：`, never: (n) => `另有 ${n} 个块从未用过，没有画出。`,
    block: (b) => `${b} 号块`, refs: (n) => `引用计数 ${n}`, isFree: "空闲", isNamed: "空闲，内容还可命中（上一次属于这个请求）", unused: "没有内容",
    slot: "槽位", positions: "位置", samples: "采到", chunk: "还没算完提示词，不采样", guesses: (n, right) => `虚线框是猜测，${n} 个里猜对 ${right} 个：绿色的各多得一个 token，划掉的作废`, allowed: (n) => `语法允许 ${n} 个 token：`, more: (n) => ` 另有 ${n} 个`, prompt: "提示词", preempted: "抢占", hits: "命中",
    states: { waiting: "等待", running: "运行", finished: "已结束" },
    reasons: { stop: "停止 token 或停止字符串", length: "长度上限", abort: "被取消" },
    noAttention: "只有 --backend torch 记录注意力权重：别的后端里没有这个中间结果。",
    heat: "行是正在算的 token，列是它看的 token，越深权重越大；空行是前缀缓存命中的（没有重算）或额度之外的。只画到这一步为止。", cell: (q, k, w) => `${q} 看 ${k}：${w}%`,
  },
  en: {
    switch: "中文", pool: "Physical blocks", queues: "Queues", batch: "This step's batch", events: "What happened in this step", texts: "The text so far",
    attention: "Attention weights", request: "request", layer: "layer", head: "head", first: "first step (Home)", back: "back (←)", next: "next (→)", last: "last (End)",
    poolHint: "The colour is the request, the height of the fill how many slots are written, the hatching what this step writes; ×2 is shared by two; a dashed frame is a free block whose contents the prefix cache can still hit. Click a block to see its tokens.",
    batchHint: "A row is a sequence: the tokens that enter the model in this step, the slots they are written to, the token sampled (the top 5 with probabilities from the raw logits).",
    curveHint: "Free blocks (click to go to a step); red lines are preemptions", running: "running", waiting: "waiting", none: "(none)",
    facts: (r) => `${r.backend} backend · ${r.device} · ${r.dtype} · ${r.num_blocks} blocks × ${r.block_size} tokens · at most ${r.budget} tokens a step · at most ${r.max_num_seqs} sequences running${r.num_ranks > 1 ? ` · rank ${r.rank} of ${r.num_ranks}, heads ${span(r.rank * r.num_heads, r.num_heads)} of ${r.num_ranks * r.num_heads}` : ""}`,
    truncated: "The recording ends here, or the file would be too large; the run itself was not affected.",
    step: (n, last) => `Step ${n} / ${last}`, ended: "the run has ended", empty: "No batch in this step: the run has ended and all blocks went back.",
    phases: { schedule: "schedule", batch: "flatten", forward: "forward", sample: "sample", update: "update" },
    free: (n, all) => `Free ${n} / ${all}, the next to be taken first: `, never: (n) => `${n} more blocks were never used and are not drawn.`,
    block: (b) => `Block ${b}`, refs: (n) => `reference count ${n}`, isFree: "free", isNamed: "free, contents can still be hit (last owned by this request)", unused: "no contents",
    slot: "slot", positions: "positions", samples: "sampled", chunk: "the prompt is not complete yet: nothing is sampled", guesses: (n, right) => `dashed: guesses, ${right} of ${n} right; each green one is a token more, those struck out are void`, allowed: (n) => `the grammar allows ${n} ${n === 1 ? "token" : "tokens"}: `, more: (n) => ` and ${n} more`, prompt: "prompt", preempted: "preemptions", hits: "hits",
    states: { waiting: "waiting", running: "running", finished: "finished" },
    reasons: { stop: "a stop token or stop string", length: "a length limit", abort: "cancelled" },
    noAttention: "Only --backend torch records attention weights: in the other backends this intermediate result never exists.",
    heat: "Rows are the tokens computed, columns the tokens they look at; darker is more weight. Empty rows came from the prefix cache (not computed) or lie beyond the allowance. Shown up to this step.", cell: (q, k, w) => `${q} looks at ${k}: ${w}%`,
  },
};

// 每种事件的说明；`e` 是事件，`AT` 的位置换成请求的彩色标签，它是模型写不出来的控制字符。
// What each kind of event means; `e` is the event, and the request's chip replaces `AT`, a control character.
const AT = "\u0001";
const list = (blocks) => (blocks.length > 12 ? `${blocks.slice(0, 12).join(", ")}, …` : blocks.join(", "));
const runs = (slots) => slots.map(([first, count]) => span(first, count)).join(", ");
const blocks = (e) => `${e.blocks.length > 1 ? "blocks" : "block"} ${list(e.blocks)}`;
const span = (first, count) => (count > 1 ? `${first}–${first + count - 1}` : `${first}`);
const percent = (p) => (100 * p).toFixed(p < 0.1 ? 1 : 0);
const EVENTS = {
  zh: {
    arrive: (e) => `${AT} 到来，提示词 ${e.tokens} 个 token，排到等待队列末尾。`,
    fork: (e) => `${AT} 是同一请求的另一份输出：第 1 份已把提示词的块算好登记，它排到等待队列最前面，去命中那些块。`,
    admit: (e) => `${AT} 被接纳：预算、运行数和空闲块都够，这一步要算 ${e.tokens} 个 token。`,
    hit: (e) => `${AT} 的开头与算过的前缀相同，直接共用块 ${list(e.blocks)}，省下 ${e.blocks.length * R.block_size} 个 token 的计算。`,
    wait: (e) => `${AT} 还得等：要 ${e.needed} 个块，命中 ${e.hit} 个，空闲的只有 ${e.free} 个；它后面的也跟着等。`,
    grow: (e) => `${AT} 要装下 ${e.tokens} 个 token，原有的块不够，从空闲队列头上取块 ${list(e.blocks)}。`,
    evict: (e) => `块 ${list(e.blocks)} 里还留着可命中的旧内容；现在要给别人用，旧内容此刻才淘汰。`,
    preempt: (e) => `块不够了，#${e.beneficiary} 要长大：抢占最后接纳的 ${AT}，它算过的 ${e.lost} 个 token 作废，回到等待队列最前面，以后重算。`,
    write: (e) => `${AT} 的位置 ${span(e.start, e.count)} 送进模型，K、V 写到槽位 ${runs(e.slots)}（槽位 = 块号 × ${R.block_size} + 偏移）。`,
    chunk: (e) => `${AT} 的提示词这一步只算到第 ${e.done} 个，共 ${e.known} 个：预算用完了（分块预填充），所以还不采样。`,
    accept: (e) => `${AT} 猜了 ${words(e.guesses)}：${e.guesses.length} 个里猜对 ${e.right} 个，这一步得到 ${e.tokens} 个 token。`,
    sample: (e) => `${AT} 选中 ${word(e.token)}，模型给它的概率是 ${percent(e.probability)}%。`,
    register: (e) => `${AT} 的块 ${list(e.blocks)} 写满了，登记到前缀缓存，别的请求可以命中。`,
    finish: (e) => `${AT} 结束：${TEXTS.zh.reasons[e.reason]}，共输出 ${e.output} 个 token。`,
    free: (e) => `${AT} 归还块 ${list(e.blocks)}${e.kept.length ? `，其中 ${list(e.kept)} 还有别人在用` : ""}；从尾到头归还，开头的块留得最久。`,
    abort: () => `${AT} 被取消，立刻离开队列。`,
  },
  en: {
    arrive: (e) => `${AT} arrives with a prompt of ${e.tokens} tokens and joins the end of the waiting queue.`,
    fork: (e) => `${AT} is another output of the same request: number 1 has computed and registered the prompt's blocks, so this one enters at the front of the waiting queue to hit them.`,
    admit: (e) => `${AT} is admitted: budget, running cap and free blocks suffice; ${e.tokens} tokens are computed in this step.`,
    hit: (e) => `${AT} begins like a prefix computed before and shares ${blocks(e)}, which saves the computation of ${e.blocks.length * R.block_size} tokens.`,
    wait: (e) => `${AT} has to wait: it needs ${e.needed} blocks, ${e.hit} are hits, and only ${e.free} are free; those behind it wait as well.`,
    grow: (e) => `${AT} must hold ${e.tokens} tokens and its blocks do not suffice: it takes ${blocks(e)} from the head of the free queue.`,
    evict: (e) => `Block ${list(e.blocks)} still held contents that could be hit; somebody needs it now, so only now they are evicted.`,
    preempt: (e) => `Blocks ran short while #${e.beneficiary} had to grow: ${AT}, admitted last, is preempted. Its ${e.lost} computed tokens are void; it waits at the very front and recomputes later.`,
    write: (e) => `${AT} sends ${e.count > 1 ? "positions" : "position"} ${span(e.start, e.count)} into the model; K and V go to ${e.count > 1 ? "slots" : "slot"} ${runs(e.slots)} (slot = block × ${R.block_size} + offset).`,
    chunk: (e) => `${AT} has its prompt computed up to token ${e.done} of ${e.known}: the budget was used up (chunked prefill), so nothing is sampled yet.`,
    accept: (e) => `${AT} guessed ${words(e.guesses)}: ${e.right} of ${e.guesses.length} right, so this step brings ${e.tokens} ${e.tokens === 1 ? "token" : "tokens"}.`,
    sample: (e) => `${AT} gets ${word(e.token)}, to which the model gave a probability of ${percent(e.probability)}%.`,
    register: (e) => `${AT} has filled ${blocks(e)}; this enters the prefix cache, and others can hit them.`,
    finish: (e) => `${AT} ends: ${TEXTS.en.reasons[e.reason]}, ${e.output} output tokens.`,
    free: (e) => `${AT} returns ${blocks(e)}${e.kept.length ? `, of which ${list(e.kept)} still serve others` : ""}; tail first, so that the head survives longest.`,
    abort: () => `${AT} is cancelled and leaves the queues at once.`,
  },
};

// ---- 小工具 ----
// ---- small tools ----

// 全部文字都经 `textContent` 进入页面：模型写出的标签只是文字，不会变成元素。
// All text enters the page by `textContent`: a tag that the model writes is text and never becomes an element.
function make(tag, className, text, children = []) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text !== undefined && text !== null) element.textContent = text;
  element.append(...children);
  return element;
}
function put(id, ...children) { $(id).replaceChildren(...children); }
function t(key) { return TEXTS[state.language][key]; }
// 黄金角错开色相：相邻的请求颜色差得远。
// Hues by the golden angle: neighbouring requests differ clearly.
function colour(name) { return `hsl(${(names.indexOf(name) * 137.5 + 210) % 360} 65% 72%)`; }
function word(token) {
  const text = (R.tokens[token] ?? "?").replaceAll("\n", "↵").replaceAll(" ", "␣");
  return state.language === "zh" ? `「${text}」` : `“${text}”`;
}
function words(tokens) { return tokens.map(word).join(state.language === "zh" ? "" : " "); }
function piece(token, index) {
  const element = make("span", "token");
  if (index !== undefined) element.append(make("small", "", index));
  element.append((R.tokens[token] ?? "?").replaceAll("\n", "↵").replaceAll(" ", "␣"));
  return element;
}
function chip(name) {
  const button = make("button", "chip" + (state.request === name ? " selected" : ""), `#${name}`);
  button.style.background = colour(name);
  button.dataset.request = name;
  button.onclick = () => { state.request = state.request === name ? null : name; draw(); };
  return button;
}

// ---- 从事件推出每一步的状态 ----
// ---- each step's state, from the events ----

// 请求在哪一步结束或取消。
// The step in which a request finished or was cancelled.
const lastStep = R.steps.length - 1, ended = {};
R.steps.forEach((step, n) => {
  for (const e of step.events) if (e.kind === "finish" || e.kind === "abort") ended[e.request] = n;
});
// 第 n 步开始时已知的 token 数；还没到来的请求是 undefined。
// The tokens known as step n begins; undefined for a request that is not here yet.
function known(n, name) { return R.steps[n].known[name] ?? (ended[name] <= n ? R.requests[name].tokens.length : undefined); }
// 猜对几个：抽出的与猜的相等；猜错之后就没有再抽。
// How many guesses were right: equal to what was drawn; behind a wrong one nothing counts.
function right(row) { return row.guesses.filter((guess, i) => guess === row.tokens[i]).length; }
// 某个位置在这一步的 token：已知的后面是猜测，猜测不在请求的 token 里，画成虚框。
// The token at a position in this step: guesses follow the known ones; they are no tokens of the request and drawn as
// ghosts.
function input(step, name, position, label) {
  const row = step.rows.find((r) => r.request === name), index = position - step.known[name];
  const guess = row?.guesses[index], element = piece(guess ?? R.requests[name].tokens[position], label);
  if (guess !== undefined) element.classList.add("guess", index < right(row) ? "right" : "wrong");
  return element;
}
// 只画用过的块：默认的块池有上万个，画出来都是空格。
// Only blocks ever used are drawn: a default pool has tens of thousands, nearly all of them blank.
const drawn = (() => {
  if (R.num_blocks <= 256) return [...Array(R.num_blocks).keys()];
  const used = new Set();
  for (const step of R.steps) for (const b of [...Object.keys(step.refs).map(Number), ...step.named]) used.add(b);
  return [...used].sort((a, b) => a - b);
})();
function owners(step, block) { return Object.keys(step.tables).filter((name) => step.tables[name].includes(block)); }
// 块里写到第几个槽位：写入前和写入后。
// How many slots of the block are written, before and after this step.
function fill(step, name, block) {
  const offset = step.tables[name].indexOf(block) * R.block_size;
  const row = step.rows.find((r) => r.request === name);
  const clamp = (count) => Math.max(0, Math.min(R.block_size, count - offset));
  return [clamp(step.computed[name]), clamp(step.computed[name] + (row ? row.count : 0)), offset];
}
function lastOwner(block) {
  for (let n = state.step; n >= 0; n--) {
    const name = owners(R.steps[n], block)[0];
    if (name) return [R.steps[n], name];
  }
  return null;
}

// ---- 画 ----
// ---- draw ----

function drawPool(step) {
  put("blocks", ...drawn.map((block) => {
    const button = make("button", "block", null, [make("b", "", block)]);
    const users = owners(step, block), named = step.named.includes(block);
    button.dataset.block = block;
    if (users.length) {
      const [before, after] = fill(step, users[0], block);
      const bar = make("span", "fill", null, users.map((name) => { const i = make("i"); i.style.background = colour(name); return i; }));
      bar.style.height = `${(100 * after) / R.block_size}%`;
      const fresh = make("span", "fresh");
      fresh.style.bottom = `${(100 * before) / R.block_size}%`;
      fresh.style.height = `${(100 * (after - before)) / R.block_size}%`;
      button.prepend(bar, fresh);
      if (step.refs[block] > 1) button.append(make("em", "", `×${step.refs[block]}`));
      button.title = `${users.map((u) => "#" + u).join(" ")} · ${after}/${R.block_size}`;
    } else if (named) button.classList.add("named");
    if (state.block === block) button.classList.add("selected");
    if (state.request !== null && !users.includes(state.request)) button.classList.add("dim");
    button.onclick = () => { state.block = state.block === block ? null : block; draw(); };
    return button;
  }));
  const never = R.num_blocks - drawn.length;
  put("free", t("free")(step.num_free, R.num_blocks) + list(step.free) + (never ? ` — ${t("never")(never)}` : ""));
  drawDetail(step);
}

function drawDetail(step) {
  if (state.block === null) return put("detail");
  const block = state.block, users = owners(step, block), named = step.named.includes(block);
  const head = make("div", "", null, [make("strong", "", t("block")(block) + " ")]);
  const parts = [head];
  let from = users.length ? [step, users[0]] : named ? lastOwner(block) : null;
  if (users.length) head.append(...users.map(chip), t("refs")(step.refs[block]));
  else head.append(...(from ? [chip(from[1])] : []), named ? t("isNamed") : `${t("isFree")}, ${t("unused")}`);
  if (from) {
    const [, after, offset] = fill(from[0], from[1], block);
    const count = users.length ? after : R.block_size;
    const slots = [...Array(R.block_size).keys()].map((i) => i < count ? input(from[0], from[1], offset + i, block * R.block_size + i)
      : make("span", "token empty", block * R.block_size + i));
    parts.push(make("div", "slots", null, slots));
  }
  put("detail", ...parts);
}

function drawQueues(step) {
  for (const queue of ["running", "waiting"]) {
    const chips = step[queue].map(chip);
    put(queue, make("strong", "", `${t(queue)} `), ...(chips.length ? chips : [t("none")]));
  }
}

function drawBatch(step) {
  if (!step.rows.length) return put("rows", make("p", "hint", t("empty")));
  put("rows", ...step.rows.map((row) => {
    const inputs = [...Array(row.count).keys()].map((i) => input(step, row.request, row.start + i, row.start + i));
    const line = make("div", "row", null, [
      chip(row.request),
      make("span", "what", ` ${t("positions")} ${span(row.start, row.count)} → ${t("slot")} ${runs(row.slots)}`),
      make("div", "", null, inputs),
    ]);
    if (row.guesses.length) line.append(make("div", "what", t("guesses")(row.guesses.length, right(row))));
    if (row.num_allowed) {
      const more = row.num_allowed - row.allowed.length;
      const pieces = row.allowed.map((id) => piece(id));
      line.append(make("div", "what allowed", null, [t("allowed")(row.num_allowed), ...pieces, more ? t("more")(more) : ""]));
    }
    if (!row.num_logits) line.append(make("div", "what", t("chunk")));
    line.append(...row.tokens.map((token, i) => {
      const top = row.top[i], shown = top.some(([id]) => id === token) ? top : [...top, [token, row.probabilities[i]]];
      return make("div", "top", null, shown.flatMap(([id, p]) => {
        const bar = make("i", id === token ? "chosen" : "");
        bar.style.width = `${100 * p}%`;
        const name = piece(id);
        if (id === token) name.classList.add("new");
        return [name, make("span", "bar", null, [bar]), make("span", "", `${percent(p)}%`)];
      }));
    }));
    return line;
  }));
}

function drawEvents(step) {
  put("events", ...step.events.map((e) => {
    const item = make("li", e.kind), [before, after] = EVENTS[state.language][e.kind](e).split(AT);
    item.append(before);
    if (after !== undefined) item.append(chip(e.request), after);
    const source = R.sources[e.kind], link = make("a", "", ` ${source.symbol}`);
    link.href = `vscode://file/${encodeURI(R.root.replace(/^\//, ""))}/${source.symbol.split("::")[0]}:${source.line}`;
    item.append(link);
    return item;
  }));
}

function drawTexts(step) {
  put("requests", ...names.filter((name) => known(state.step, name) !== undefined).map((name) => {
    const request = R.requests[name], row = step.rows.find((r) => r.request === name);
    const count = known(state.step, name) - request.num_prompt;
    const letters = Array.from(request.text), end = (n) => (n > 0 ? request.ends[n - 1] ?? letters.length : 0);
    const status = step.running.includes(name) ? "running" : step.waiting.includes(name) ? "waiting" : "finished";
    const box = make("div", "request" + (state.request === name ? " selected" : ""), null, [
      chip(name),
      make("span", "state", ` ${t("states")[status]}${status === "finished" ? ` · ${t("reasons")[request.finish_reason]}` : ""}`),
      make("details", "", null, [make("summary", "state", `${t("prompt")} (${request.num_prompt})`),
        make("div", "", null, request.tokens.slice(0, request.num_prompt).map((token, i) => piece(token, i)))]),
      make("div", "out", null, [letters.slice(0, end(count)).join(""),
        ...(row ? [make("mark", "", letters.slice(end(count), end(count + row.tokens.length)).join(""))] : [])]),
    ]);
    box.style.borderColor = colour(name);
    if (state.request === name) box.querySelector("details").open = true;
    return box;
  }));
}

// 注意力：每行一个 base64 串，解开是 [层][头][位置 + 1] 个字节。
// Attention: a base64 string a row, which holds [layer][head][position + 1] bytes.
const decoded = new Map();
function weights(name, position, layer, head) {
  const key = `${name}/${position}`, text = R.requests[name].attention[position];
  if (text === undefined) return null;
  if (!decoded.has(key)) decoded.set(key, Uint8Array.from(atob(text), (c) => c.charCodeAt(0)));
  const start = (layer * R.num_heads + head) * (position + 1);
  return decoded.get(key).subarray(start, start + position + 1);
}
function heatRequest() {
  const chosen = state.request ?? $("heat-request").value;
  return names.includes(chosen) && Object.keys(R.requests[chosen].attention).length ? chosen : $("heat-request").value;
}
function drawHeat() {
  const recorded = names.filter((name) => Object.keys(R.requests[name].attention).length);
  $("heat-controls").hidden = $("heat-map").hidden = !recorded.length;
  $("heat-hint").textContent = recorded.length ? t("heat") : t("noAttention");
  if (!recorded.length) return;
  const name = heatRequest(), layer = +$("heat-layer").value, head = +$("heat-head").value;
  $("heat-request").value = name;
  // 到这一步为止已知的 token；还没到来的请求画一个空格。
  // The tokens known up to this step; a request that is not here yet draws one empty cell.
  const step = R.steps[state.step], row = step.rows.find((r) => r.request === name);
  const count = known(state.step, name) ?? 0;
  const size = Math.max(1, Math.min(count, Math.max(...Object.keys(R.requests[name].attention).map(Number)) + 1));
  const canvas = $("heat-map"), context = canvas.getContext("2d");
  canvas.width = canvas.height = size;
  const image = context.createImageData(size, size);
  const limit = row ? row.start + row.count : count - (count > R.requests[name].num_prompt ? 1 : count);
  for (let q = 0; q < size; q++) {
    const values = q < limit || ended[name] < state.step ? weights(name, q, layer, head) : null;
    for (let k = 0; k < size; k++) {
      // 开方：0.01 的权重也看得见，否则只看得到最大的几个。
      // The square root keeps a weight of 0.01 visible, or only the few largest would be seen.
      const shade = values && k <= q ? Math.sqrt(values[k] / 255) : 0, at = 4 * (q * size + k);
      const base = k > q ? [236, 239, 243] : values ? [255, 255, 255] : [246, 240, 226];
      image.data.set([base[0] - shade * 224, base[1] - shade * 144, base[2] - shade * 20, 255], at);
    }
  }
  context.putImageData(image, 0, 0);
  canvas.onmousemove = canvas.onclick = (event) => {
    const box = canvas.getBoundingClientRect();
    const q = Math.floor(((event.clientY - box.top) / box.height) * size), k = Math.floor(((event.clientX - box.left) / box.width) * size);
    const values = q >= 0 && q < size ? weights(name, q, layer, head) : null;
    const tokens = R.requests[name].tokens;
    $("heat-cell").textContent = values && k >= 0 && k <= q
      ? t("cell")(`${q} ${word(tokens[q])}`, `${k} ${word(tokens[k])}`, percent(values[k] / 255)) : "";
  };
}

function drawCurve() {
  // 高度只按画出的块算：30,000 个块里用了 20 个，按总数画就是一条直线。
  // The height counts the drawn blocks only: 20 used out of 30,000 would be a straight line.
  const never = R.num_blocks - drawn.length;
  const x = (n) => (lastStep ? (1000 * n) / lastStep : 500), y = (free) => 57 - (54 * (free - never)) / drawn.length;
  const points = R.steps.map((step, n) => `${x(n)},${y(step.num_free)}`).join(" ");
  const svg = (tag, attributes) => {
    const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    return element;
  };
  const line = (n, kind, height) => svg("line", { x1: x(n), x2: x(n), y1: 0, y2: height, class: kind });
  const preempted = R.steps.flatMap((step, n) => (step.events.some((e) => e.kind === "preempt") ? [line(n, "preempt", 18)] : []));
  put("curve", svg("polygon", { points: `0,57 ${points} 1000,57`, class: "area" }), line(state.step, "cursor", 60), ...preempted);
}

function draw() {
  const step = R.steps[state.step];
  document.documentElement.lang = state.language;
  for (const element of document.querySelectorAll("[data-text]")) element.textContent = t(element.dataset.text);
  for (const element of document.querySelectorAll("[data-title]")) element.title = t(element.dataset.title);
  $("language").textContent = t("switch");
  $("facts").textContent = t("facts")(R);
  $("curve-hint").textContent = t("curveHint");
  $("truncated").hidden = !R.truncated;
  $("truncated").textContent = t("truncated");
  $("slider").value = state.step;
  $("label").textContent = t("step")(state.step, lastStep);
  const spent = step.phases.map(([name, , ms]) => `${t("phases")[name]} ${ms.toFixed(1)}`).join(" · ");
  $("times").textContent = `${spent ? spent + " ms" : t("ended")} · ${t("preempted")} ${step.preemptions} · ${t("hits")} ${step.hits}/${step.queries} tokens`;
  drawCurve();
  drawPool(step);
  drawQueues(step);
  drawBatch(step);
  drawEvents(step);
  drawTexts(step);
  drawHeat();
}

// ---- 操作 ----
// ---- controls ----

function go(n) { state.step = Math.max(0, Math.min(lastStep, n)); draw(); }
$("slider").max = lastStep;
$("slider").oninput = (event) => go(+event.target.value);
$("first").onclick = () => go(0);
$("back").onclick = () => go(state.step - 1);
$("next").onclick = () => go(state.step + 1);
$("last").onclick = () => go(lastStep);
$("language").onclick = () => { state.language = state.language === "zh" ? "en" : "zh"; draw(); };
$("curve").onclick = (event) => {
  const box = $("curve").getBoundingClientRect();
  go(Math.round(((event.clientX - box.left) / box.width) * lastStep));
};
document.addEventListener("keydown", (event) => {
  const moves = { ArrowLeft: state.step - 1, ArrowRight: state.step + 1, Home: 0, End: lastStep };
  // 下拉框自己要用方向键。
  // A select needs the arrow keys for itself.
  if (!(event.key in moves) || event.target.tagName === "SELECT" || event.ctrlKey || event.altKey || event.metaKey) return;
  event.preventDefault();
  go(moves[event.key]);
});
for (const [id, count, first] of [["heat-layer", R.num_layers, 0], ["heat-head", R.num_heads, R.rank * R.num_heads]])
  put(id, ...[...Array(count).keys()].map((i) => {
    const option = make("option", "", first + i);
    option.value = i;
    return option;
  }));
put("heat-request", ...names.filter((name) => Object.keys(R.requests[name].attention).length).map((name) => {
  const option = make("option", "", `#${name}`);
  option.value = name;
  return option;
}));
$("heat-request").onchange = (event) => { if (state.request !== null) state.request = event.target.value; draw(); };
$("heat-layer").onchange = $("heat-head").onchange = draw;
draw();
