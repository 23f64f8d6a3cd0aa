"use strict";
// The page is complete without this script, which filters, opens details and moves the focus.
const details = JSON.parse(document.getElementById("details").textContent);
const text = document.getElementById("text");
const shown = document.getElementById("shown");
const dialog = document.getElementById("detail");
const toggles = [...document.querySelectorAll(".bar button[data-state]")];
const rows = [...document.querySelectorAll("#laws tr.row")];
let cell = null; // the cell that Tab focuses; the arrow keys move it

function filter() {
  const words = text.value.toLowerCase().split(/\s+/).filter(Boolean);
  const wanted = new Set(toggles.filter((t) => t.ariaPressed === "true").map((t) => t.dataset.state));
  let count = 0;
  for (const row of rows) {
    const state = row.dataset.state.split(" ");
    row.hidden = !(words.every((word) => row.dataset.text.includes(word)) && state.some((one) => wanted.has(one)));
    count += !row.hidden;
  }
  for (const group of document.querySelectorAll("#laws tbody")) {
    group.hidden = !group.querySelector("tr.row:not([hidden])");
  }
  shown.textContent = count === rows.length ? `all ${count} laws` : `${count} of ${rows.length} laws`;
  document.getElementById("nothing").hidden = count > 0;
  if (!cell || cell.closest("tr").hidden) rove(visible()[0]?.querySelector("button"));
}

const visible = () => rows.filter((row) => !row.hidden);

function rove(next) {
  if (!next) return;
  if (cell) cell.tabIndex = -1;
  cell = next;
  cell.tabIndex = 0;
}

function move(key) {
  const all = visible();
  const row = cell.closest("tr");
  const cells = [...row.querySelectorAll("button")];
  const column = cells.indexOf(cell);
  const at = all.indexOf(row);
  const steps = { ArrowDown: [1, 0], ArrowUp: [-1, 0], ArrowRight: [0, 1], ArrowLeft: [0, -1] };
  const [down, right] = steps[key] ?? [key === "Home" ? -at : all.length - 1 - at, 0];
  rove(all[at + down]?.querySelectorAll("button")[column + right]);
  cell.focus();
}

function open(button) {
  const found = details[button.dataset.key];
  document.getElementById("detail-title").textContent = found.title;
  const list = document.getElementById("detail-list");
  list.replaceChildren();
  for (const [name, value, code] of found.rows) {
    const term = document.createElement("dt");
    const said = document.createElement("dd");
    term.textContent = name;
    said.append(value);
    if (code) {
      const block = document.createElement("pre");
      block.textContent = value;
      said.replaceChildren(block);
    }
    list.append(term, said);
  }
  dialog.showModal();
}

document.getElementById("laws").addEventListener("click", (event) => {
  const button = event.target.closest("button[data-key]");
  if (!button) return;
  rove(button);
  open(button);
});
dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.altKey || event.metaKey || dialog.open) return;
  if (event.key === "/" && event.target !== text) {
    event.preventDefault();
    text.focus();
    text.select();
  } else if (event.key === "Escape" && event.target === text) {
    text.value = "";
    filter();
  } else if (event.target === text && ["Enter", "ArrowDown"].includes(event.key)) {
    event.preventDefault();
    cell?.focus();
  } else if (event.target === cell && /^(Arrow|Home$|End$)/.test(event.key)) {
    event.preventDefault();
    move(event.key);
  }
});
for (const toggle of toggles) {
  toggle.addEventListener("click", () => {
    toggle.ariaPressed = String(toggle.ariaPressed !== "true");
    filter();
  });
}
text.addEventListener("input", filter);
document.querySelector(".bar").hidden = false;
for (const button of document.querySelectorAll("#laws button")) button.tabIndex = -1;
filter();
