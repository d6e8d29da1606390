// 语言：先看网址里的 `#lang=zh|en|both`，再看上次的选择，最后看浏览器；在页面画出来之前就定下。
// The language: `#lang=zh|en|both` of the address first, then the last choice, then the browser's; set before anything
// is drawn.
(() => {
  const root = document.documentElement;
  const fromHash = () => (location.hash.match(/^#lang=(zh|en|both)$/) || [])[1];
  // 存储可能被浏览器禁用；那就只是记不住，页面照常。
  // Storage may be forbidden; then the choice is not remembered, and nothing else changes.
  const remembered = () => { try { return localStorage.getItem("mini-llama-lang"); } catch { return null; } };
  const set = (lang, keep) => {
    root.dataset.lang = lang;
    root.lang = lang === "en" ? "en" : "zh";
    document.querySelectorAll("[data-set]").forEach((b) => b.setAttribute("aria-pressed", b.dataset.set === lang));
    if (keep) try { localStorage.setItem("mini-llama-lang", lang); } catch { }
  };
  const choose = () => {
    const asked = fromHash();
    set(asked || remembered() || (navigator.language.startsWith("zh") ? "zh" : "en"), Boolean(asked));
  };
  choose();
  addEventListener("hashchange", () => { if (fromHash()) choose(); });
  addEventListener("DOMContentLoaded", () => {
    choose();
    document.querySelectorAll("[data-set]").forEach((b) => b.addEventListener("click", () => {
      // 换了语言，段落的高度就变了：让眼前的那一行代码留在原处。
      // Another language has paragraphs of other heights: keep the line of code where the eye is.
      const seen = [...document.querySelectorAll(".row")].find((row) => row.getBoundingClientRect().bottom > 60);
      const top = seen ? seen.getBoundingClientRect().top : 0;
      set(b.dataset.set, true);
      if (seen) scrollBy(0, seen.getBoundingClientRect().top - top);
    }));
  });
})();
