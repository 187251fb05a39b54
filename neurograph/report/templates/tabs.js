"use strict";
/** Tabs: a button `tab-NAME` and a panel `panel-NAME` of each name, walked with the arrow keys.
 *
 * Returns what shows one of them, and on request puts the keyboard's focus on its button. `shown`
 * hears of the name.
 */
kit.tabs = (names, shown = () => {}) => {
  const { $ } = kit;

  function show(name, focus) {
    for (const other of names) {
      const on = other === name;
      $(`tab-${other}`).setAttribute("aria-selected", String(on));
      $(`tab-${other}`).tabIndex = on ? 0 : -1;
      $(`panel-${other}`).hidden = !on;
    }
    shown(name);
    if (focus) $(`tab-${name}`).focus();
  }

  names.forEach((name, k) => {
    $(`tab-${name}`).addEventListener("click", () => show(name));
    $(`tab-${name}`).addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (!step) return;
      event.preventDefault();
      show(names[(k + step + names.length) % names.length], true);
    });
  });
  return show;
};
