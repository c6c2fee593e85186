"use strict";
// Galleries sort, filter and copy. Arrow keys move between the photos, c copies the line of one.
const cell = (text) => (/[",\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);
const said = document.getElementById("said");
const order = {
  loss: (a, b) => b.dataset.loss - a.dataset.loss,
  prob: (a, b) => a.dataset.prob - b.dataset.prob,
  id: (a, b) => a.dataset.id.localeCompare(b.dataset.id, "en", { numeric: true }),
};

async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    // a page opened from disk may not be allowed to use the clipboard directly
    const field = document.createElement("textarea");
    field.value = text;
    document.body.append(field);
    field.select();
    document.execCommand("copy");
    field.remove();
  }
  said.textContent = `Copied for data/verdicts.csv: ${text}`;
}

for (const form of document.querySelectorAll("form.toolbar")) {
  const list = form.nextElementSibling;
  const cards = [...list.children];
  const field = form.elements;
  const shown = () => [...list.children].filter((card) => !card.hidden);

  function update() {
    const text = field.text.value.toLowerCase();
    for (const card of cards) {
      const { id, label, fix } = card.dataset;
      card.hidden =
        (field.label.value && label !== field.label.value) ||
        !id.toLowerCase().includes(text) ||
        (field.open.checked && fix !== "");
      const heat = card.querySelector(".heat");
      if (heat) heat.hidden = !field.heat.checked;
    }
    list.append(...cards.sort(order[field.sort.value]));
    shown().forEach((card, place) => (card.tabIndex = place ? -1 : 0));
    field.count.value = `${shown().length} of ${cards.length} photos`;
  }

  function copyLine(card) {
    const { id, reason } = card.dataset;
    if (reason) copy([cell(id), field.verdict.value, cell(reason), ""].join(","));
  }

  function columns(all) {
    const top = all[0].offsetTop;
    const second = all.findIndex((card) => card.offsetTop !== top);
    return second < 0 ? all.length : second;
  }

  form.addEventListener("input", update);
  form.addEventListener("submit", (event) => event.preventDefault());
  list.addEventListener("click", (event) => {
    if (event.target.matches(".copy")) copyLine(event.target.closest(".card"));
  });
  list.addEventListener("keydown", (event) => {
    const card = event.target;
    if (!card.matches(".card") || event.ctrlKey || event.metaKey || event.altKey) return;
    const all = shown();
    const at = all.indexOf(card);
    const wide = columns(all);
    const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: wide, ArrowUp: -wide }[event.key];
    const to = { Home: 0, End: all.length - 1 }[event.key] ?? at + (step ?? NaN);
    if (event.key === "c") copyLine(card);
    if (!all[to]) return;
    event.preventDefault();
    card.tabIndex = -1;
    all[to].tabIndex = 0;
    all[to].focus();
  });
  update();
}
