"use strict";
/** What the pages share: numbers as text, elements, small tables of facts. */
const kit = (() => {
  const MINUS = "\u2212";
  const $ = (id) => document.getElementById(id);
  const finite = (x) => typeof x === "number" && Number.isFinite(x);
  const size = (x) => (finite(x) ? Math.abs(x) : 0);

  function digits(x) {
    return x === 0 ? 2 : Math.min(4, Math.max(2, 1 - Math.floor(Math.log10(Math.abs(x)))));
  }

  function number(x, places) {
    if (!finite(x)) return "–";
    const a = Math.abs(x);
    let text;
    if (a !== 0 && a < 5e-4) text = a.toExponential(1).replace("e-", "e" + MINUS);
    else if (a >= 1e5) text = a.toExponential(2).replace("e+", "e");
    else text = a.toFixed(places ?? (a >= 100 ? 1 : digits(a)));
    return (x < 0 ? MINUS : "") + text;
  }

  function signed(x, places) {
    return finite(x) && x >= 0 ? "+" + number(x, places) : number(x, places);
  }

  function withError(x, stderr) {
    const tiny = size(x) !== 0 && size(x) < 5e-4;
    const places = tiny || size(x) >= 100 ? undefined : digits(x || 0);
    if (!finite(stderr)) return [signed(x, places), ""];
    const visible = stderr === 0 || stderr >= 0.5 * 10 ** -(places ?? 2);
    return [signed(x, places), " ± " + number(stderr, visible ? places : undefined)];
  }

  const many = (x) => x.toLocaleString("en");
  const plural = (count, word) => `${many(count)} ${word}${count === 1 ? "" : "s"}`;
  const part = (shown, all) => (shown === all ? many(all) : `${many(shown)} of ${many(all)}`);

  function clipped(text, most) {
    return text.length > most ? text.slice(0, most - 1).trimEnd() + "…" : text;
  }

  function el(tag, attributes, ...children) {
    const made = tag.startsWith("svg:")
      ? document.createElementNS("http://www.w3.org/2000/svg", tag.slice(4))
      : document.createElement(tag);
    for (const [key, value] of Object.entries(attributes ?? {})) {
      if (key === "click" && value) made.addEventListener("click", value);
      else if (value !== false && value != null) made.setAttribute(key, value);
    }
    made.append(...children.filter((child) => child != null)); // strings become text, never HTML
    return made;
  }

  function facts(pairs) {
    const list = el("dl", { class: "facts" });
    for (const [name, value] of pairs) {
      if (value != null) list.append(el("dt", {}, name), el("dd", {}, value));
    }
    return list;
  }

  function table(heads, rows) {
    return el("table", {},
      el("thead", {}, el("tr", {}, ...heads.map((head) => el("th", { scope: "col" }, head)))),
      el("tbody", {}, ...rows));
  }

  function provenance(value) {
    const list = el("dl");
    for (const [key, item] of Object.entries(value ?? {})) {
      if (item !== null && typeof item === "object" && !Array.isArray(item)) {
        list.append(el("dt", { class: "group" }, key), provenance(item));
        continue;
      }
      const text = Array.isArray(item) ? item.map((inner) => (typeof inner === "object"
        ? JSON.stringify(inner) : String(inner))).join(", ") : String(item ?? "–");
      list.append(el("dt", {}, key), el("dd", {}, text));
    }
    return list;
  }

  return { MINUS, $, finite, size, digits, number, signed, withError, many, plural, part, clipped,
    el, facts, table, provenance };
})();
