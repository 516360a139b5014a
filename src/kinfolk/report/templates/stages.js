// The tree of stages: choosing one shows what is known of it; without this script all of it is shown.
(() => {
  "use strict";
  const trees = () => [...document.querySelectorAll("[data-tree]")];
  const linksOf = (tree) => [...tree.querySelectorAll("a[data-stage]")];
  const detailOf = (link) => document.getElementById(link.hash.slice(1));

  const choose = (tree, chosen) => linksOf(tree).forEach((link) => {
    if (link === chosen) link.setAttribute("aria-current", "true"); else link.removeAttribute("aria-current");
    detailOf(link).hidden = link !== chosen;
  });
  const showChosen = (tree) => {
    const links = linksOf(tree);
    choose(tree, links.find((link) => link.hasAttribute("aria-current")) || links.find((link) => link.hasAttribute("data-first")));
    tree.querySelectorAll("[data-alone]").forEach((button) => { button.hidden = false; });
  };

  document.addEventListener("click", (event) => {
    const link = event.target.closest("[data-tree] a[data-stage]");
    if (link && !event.ctrlKey && !event.metaKey) { event.preventDefault(); choose(link.closest("[data-tree]"), link); }
    const button = event.target.closest("[data-alone]");
    if (!button) return;
    const pressed = button.getAttribute("aria-pressed") !== "true";
    document.querySelectorAll("[data-alone]").forEach((other) => other.setAttribute("aria-pressed", String(other === button && pressed)));
    kinfolk.hide("loss", pressed ? JSON.parse(button.dataset.alone) : []);
  });

  document.addEventListener("keydown", (event) => {
    const link = event.target.closest("[data-tree] a[data-stage]");
    if (!link) return;
    const tree = link.closest("[data-tree]");
    const links = linksOf(tree);
    const place = links.indexOf(link);
    const next = { ArrowDown: links[place + 1], ArrowUp: links[place - 1], Home: links[0], End: links.at(-1) }[event.key];
    if (!next) return;
    event.preventDefault();
    next.focus();
    choose(tree, next);
  });

  const showAll = () => document.querySelectorAll("[data-detail]").forEach((part) => { part.hidden = false; });
  addEventListener("beforeprint", showAll);
  addEventListener("afterprint", () => trees().forEach(showChosen));
  // A page that is watched may have more stages than before.
  document.addEventListener("kinfolk:update", () => trees().forEach(showChosen));
  trees().forEach(showChosen);
})();
