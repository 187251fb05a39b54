"use strict";
/** The box that finds neurons: a combobox over `nodes`, which have `hay` and `strength`.
 *
 * `where` is what is written behind a name, or null; `chip` stands at the end of the line.
 */
kit.searchBox = ({ nodes, take, where, chip, none }) => {
  const { $, el } = kit;
  const search = { hits: [], at: 0 };

  function hitItem(node, k) {
    const item = el("li", { role: "option", id: `hit-${k}`, "aria-selected": "false" },
      el("span", { class: "name" }, node.label, where(node) && el("small", {}, where(node))),
      chip(node));
    item.addEventListener("mousedown", (event) => { // before the box loses focus and closes
      event.preventDefault();
      search.at = k;
      takeHit();
    });
    return item;
  }

  function findHits() {
    const wanted = $("search").value.trim().toLowerCase();
    const first = (node) => (node.label.toLowerCase().startsWith(wanted) ? 0 : 1);
    search.hits = wanted === "" ? [] : nodes.filter((node) => node.hay.includes(wanted))
      .sort((p, q) => first(p) - first(q) || q.strength - p.strength || p.i - q.i)
      .slice(0, 50);
    search.at = 0;
    const nothing = el("li", { class: "none" }, none);
    $("hits").replaceChildren(...(search.hits.length ? search.hits.map(hitItem) : [nothing]));
    openHits(wanted !== "");
  }

  function openHits(open) {
    $("hits").hidden = !open;
    $("search").setAttribute("aria-expanded", String(open));
    markHit();
  }

  function markHit() {
    [...$("hits").children].forEach((item, k) => {
      if (search.hits.length) item.setAttribute("aria-selected", String(k === search.at));
      if (k === search.at) item.scrollIntoView({ block: "nearest" });
    });
    if (search.hits.length && !$("hits").hidden) {
      $("search").setAttribute("aria-activedescendant", `hit-${search.at}`);
    } else $("search").removeAttribute("aria-activedescendant");
  }

  function takeHit() {
    const node = search.hits[search.at];
    if (!node) return;
    take(node);
    openHits(false);
  }

  function searchKey(event) {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (step && search.hits.length) {
      event.preventDefault();
      if (!$("hits").hidden) {
        search.at = (search.at + step + search.hits.length) % search.hits.length;
      }
      openHits(true);
    } else if (event.key === "Enter") takeHit();
    else if (event.key === "Escape") {
      event.stopPropagation();
      if ($("hits").hidden) $("search").blur();
      openHits(false);
    }
  }

  $("search").addEventListener("input", findHits);
  $("search").addEventListener("keydown", searchKey);
  $("search").addEventListener("blur", () => openHits(false));
  document.addEventListener("keydown", (event) => {
    const typing = /^(input|textarea|select)$/i.test(event.target.tagName ?? "");
    if (event.key === "/" && !typing) {
      event.preventDefault();
      $("search").focus();
      $("search").select();
    }
  });
};
