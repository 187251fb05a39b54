"use strict";
/** A table whose rows are things shown elsewhere: filtered by status, sorted, in pages.
 *
 * `columns` have `title`, `cell(row)` and `value(row)` to sort by; one without `value` is not
 * sorted by. `filters`, if any, are `{ key, label, count }` of a row's `status`, with a `glyph`
 * each; `all` counts what the page may leave out, which `note` tells below. `take` hears of rows
 * that are clicked.
 */
kit.linkedTable = ({ place, rows, columns, filters = [], all, note, take, glyph,
  isChosen = () => false, isDimmed = () => false }) => {
  const { el, many } = kit;
  const PAGE = 40;
  const state = { status: null, limit: null, sort: null, down: true, page: 0, focus: 0 };
  let listed = rows;

  function refresh() {
    listed = rows.filter((row) => (!state.status || row.status === state.status)
      && (!state.limit || state.limit.test(row)));
    if (state.sort) {
      const { value } = state.sort;
      const sense = state.down ? -1 : 1;
      const rank = (x) => (typeof x === "number" && !Number.isFinite(x) ? null : x ?? null);
      listed.sort((p, q) => {
        const [x, y] = [rank(value(p)), rank(value(q))];
        if (x === null || y === null) return (x === null) - (y === null) || p.row - q.row;
        return (x < y ? -sense : x > y ? sense : 0) || p.row - q.row;
      });
    }
    state.page = Math.max(0, Math.min(state.page, Math.ceil(listed.length / PAGE) - 1));
  }

  function filterBar() {
    const button = (key, label, count, mark) => el("button", {
      type: "button", class: key ?? "", "aria-pressed": String(state.status === key), title: label,
      "data-status": key ?? "all",
      click: () => update({ status: key, page: 0 }, `[data-status=${key ?? "all"}]`),
    }, mark, el("span", { class: "label" }, label), el("span", { class: "num" }, many(count)));
    if (!filters.length) return null;
    const bar = el("div", { class: "filters", role: "group", "aria-label": "Rows listed" },
      button(null, "all", all),
      ...filters.map(({ key, label, count }) => button(key, label, count, glyph(key))));
    if (state.limit) {
      bar.append(el("button", { type: "button", class: "chip", click: () => limit(null),
        "aria-label": `List all again, not only ${state.limit.label}` },
      el("span", { class: "label" }, state.limit.label), "✕"));
    }
    return bar;
  }

  function heading(column) {
    const sorted = state.sort === column;
    const name = column.value
      ? el("button", { type: "button", "data-sort": column.key, title: column.hint ?? column.title,
        click: () => update({ sort: column, down: sorted ? !state.down : column.key !== "name",
          page: 0 }, `[data-sort=${column.key}]`) },
      column.title, sorted ? (state.down ? " ↓" : " ↑") : "")
      : el("span", { class: "unseen" }, column.title);
    return el("th", { scope: "col", class: column.kind ?? null,
      "aria-sort": sorted ? (state.down ? "descending" : "ascending") : null }, name);
  }

  function tableRow(row, k) {
    const marks = [row.status, isChosen(row) ? "chosen" : "", isDimmed(row) ? "dimmed" : ""];
    const cells = columns.map((column) =>
      el("td", { class: column.kind ?? null }, ...[column.cell(row)].flat()));
    return el("tr", { class: marks.filter(Boolean).join(" "), "data-row": row.row,
      tabindex: k === state.focus ? 0 : -1, "aria-current": isChosen(row) ? "true" : null,
      click: take ? () => take(row) : null }, ...cells);
  }

  function pager() {
    const pages = Math.ceil(listed.length / PAGE);
    const from = state.page * PAGE;
    const turn = (by, label, sign) => {
      const button = el("button", { type: "button", "aria-label": label, "data-turn": by,
        click: () => update({ page: state.page + by, focus: 0 }, `[data-turn="${by}"]`) }, sign);
      button.disabled = state.page + by < 0 || state.page + by >= pages;
      return button;
    };
    return el("div", { class: "pager" },
      pages > 1 ? turn(-1, "Rows before", "‹") : null, pages > 1 ? turn(1, "Rows after", "›") : null,
      el("span", { class: "num" }, listed.length
        ? `${many(from + 1)}–${many(Math.min(from + PAGE, listed.length))} of ${many(listed.length)}`
        : "None."));
  }

  function show() {
    refresh();
    const from = state.page * PAGE;
    const shown = listed.slice(from, from + PAGE);
    state.focus = Math.max(0, Math.min(state.focus, shown.length - 1));
    const body = el("tbody", {}, ...shown.map(tableRow));
    body.addEventListener("keydown", rowKey);
    place.replaceChildren(...[filterBar(),
      el("table", {}, el("thead", {}, el("tr", {}, ...columns.map(heading))), body),
      pager(), note ? el("p", { class: "note" }, note) : null].filter(Boolean));
  }

  /** Change the state, draw again, and keep the focus on what was pressed. */
  function update(change, pressed) {
    Object.assign(state, change);
    show();
    if (pressed) place.querySelector(pressed)?.focus();
  }

  function rowKey(event) {
    const own = [...place.querySelectorAll("tbody tr")];
    const at = own.indexOf(event.target.closest("tr"));
    if (event.key === "Enter" || event.key === " ") {
      event.preventDefault();
      state.focus = at;
      const row = own[at].getAttribute("data-row");
      own[at].click();
      place.querySelector(`tbody tr[data-row="${row}"]`)?.focus();
    } else if (event.key === "ArrowDown" || event.key === "ArrowUp") {
      event.preventDefault();
      const next = own[at + (event.key === "ArrowDown" ? 1 : -1)];
      if (!next) return;
      own[at].tabIndex = -1;
      next.tabIndex = 0;
      state.focus = own.indexOf(next);
      next.focus();
    }
  }

  /** List only some rows: `{ label, test }`, or all again. */
  function limit(filter) {
    update({ limit: filter, page: 0, focus: 0 });
  }

  /** Turn to the page of the chosen row; filters that hide it are lifted. */
  function reveal(row) {
    refresh();
    if (!listed.includes(row)) Object.assign(state, { status: null, limit: null });
    refresh();
    const at = listed.indexOf(row);
    Object.assign(state, { page: Math.floor(at / PAGE), focus: at % PAGE });
    show();
    place.querySelector("tr.chosen")?.scrollIntoView({ block: "nearest" });
  }

  return { show, limit, reveal };
};
