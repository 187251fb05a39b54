"use strict";
/** The page's tabs: buttons `tab-NAME` with panels `panel-NAME`, walked with the arrow keys.
 *
 * Returns what shows one of them, and on request puts the keyboard's focus on its button. `shown`
 * hears of the name.
 */
kit.tabs = (shown = () => {}) => {
  const { $ } = kit;
  const names = [...document.querySelectorAll("[role=tab]")].map((tab) => tab.id.slice("tab-".length));

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
