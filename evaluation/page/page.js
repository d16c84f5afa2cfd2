(() => {
  const opened = [];
  addEventListener("beforeprint", () => {
    for (const each of document.querySelectorAll("details:not([open])")) { each.open = true; opened.push(each); }
  });
  addEventListener("afterprint", () => { while (opened.length) opened.pop().open = false; });

  const table = document.getElementById("answers-side");
  if (!table) return;
  const body = table.tBodies[0], rows = [...body.rows], heads = [...table.tHead.rows[0].cells];
  const find = document.getElementById("find"), kind = document.getElementById("kind");
  const told = document.getElementById("told");
  const texts = rows.map(row => row.textContent.toLowerCase());
  const show = () => {
    const text = find.value.toLowerCase();
    let left = 0;
    rows.forEach((row, at) => {
      row.hidden = (kind.value && row.dataset.kind !== kind.value) || !texts[at].includes(text);
      left += row.hidden ? 0 : 1;
    });
    told.textContent = left + " of " + rows.length + " rows";
  };
  find.addEventListener("input", show);
  kind.addEventListener("change", show);
  heads.forEach((head, at) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const up = head.getAttribute("aria-sort") !== "ascending";
      for (const other of heads) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const key = row => row.cells[at].dataset.sort || row.cells[at].textContent;
      const sorted = rows.map(row => [key(row), row]).sort((a, b) => (up ? 1 : -1) * a[0].localeCompare(b[0]));
      body.append(...sorted.map(each => each[1]));
    });
  });
  document.getElementById("tools").hidden = false;
  show();
})();
