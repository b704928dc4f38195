"use strict";
// The theme: the system's, until the button is pressed; then what it says, also at the next opening.
const root = document.documentElement, button = document.getElementById("theme");
const remembered = { get: () => { try { return localStorage.getItem("theme"); } catch { return null; } },
                     set: (theme) => { try { localStorage.setItem("theme", theme); } catch { /* a private window */ } } };
const isDark = () => getComputedStyle(root).colorScheme === "dark";
const label = () => { button.textContent = isDark() ? "light" : "dark"; };
if (remembered.get()) root.dataset.theme = remembered.get();
button.hidden = false;
button.addEventListener("click", () => {
  root.dataset.theme = isDark() ? "light" : "dark";
  remembered.set(root.dataset.theme);
  label();
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", label);
label();

// Tables: a click on a heading sorts by that column, the next one the other way; what is empty stays at the end.
for (const table of document.querySelectorAll("table.sortable")) {
  const headings = [...table.tHead.rows[0].cells];
  headings.forEach((heading, column) => {
    const press = document.createElement("button");
    press.append(...heading.childNodes);
    heading.append(press);
    press.addEventListener("click", () => {
      const down = heading.getAttribute("aria-sort") === "ascending";
      headings.forEach((other) => other.removeAttribute("aria-sort"));
      heading.setAttribute("aria-sort", down ? "descending" : "ascending");
      const value = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent.trim();
      const rows = [...table.tBodies[0].rows];
      rows.sort((a, b) => {
        const [x, y] = [value(a), value(b)];
        if (x === "" || y === "") return (x === "") - (y === "");
        const order = isNaN(x) || isNaN(y) ? x.localeCompare(y) : x - y;
        return down ? -order : order;
      });
      table.tBodies[0].append(...rows);
    });
  });
}
