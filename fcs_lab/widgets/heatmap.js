// A heat map of buttons: click one, or go about with the arrow keys and press Enter, to choose its cell.

function render({ model, el }) {
  const figure = document.createElement("div");
  figure.className = "fcs-heat-map";
  figure.style.cssText = "display: inline-grid; align-items: center; justify-items: stretch; font-size: 12px";
  el.append(figure);
  let buttons = [];
  let legend = null;

  const label = (text, row, column, style = "") => {
    const span = document.createElement("span");
    span.textContent = text;
    span.style.cssText = `grid-row: ${row}; grid-column: ${column}; ${style}`;
    figure.append(span);
    return span;
  };

  // Columns to the right, rows upwards; the last two lines are the columns' names and the x-axis'.
  function build() {
    const [columns, rows] = [model.get("columns"), model.get("rows")];
    const gap = Math.max(columns.length / 40, rows.length / 30) > 1 ? 0 : 2;
    const width = Math.max(3, Math.min(76, Math.floor(620 / columns.length) - gap));
    const height = Math.max(3, Math.min(44, Math.floor(480 / rows.length) - gap));
    const stepX = Math.max(1, Math.ceil(44 / width));
    const stepY = Math.max(1, Math.ceil(14 / height));
    figure.replaceChildren();
    figure.style.gap = `${gap}px`;
    figure.style.gridTemplateColumns = `auto auto repeat(${columns.length}, ${width}px)`;
    label(model.get("y_label"), `1 / span ${rows.length}`, 1, "writing-mode: vertical-rl; transform: rotate(180deg); justify-self: center; text-align: center");
    rows.forEach((name, row) => {
      if (row % stepY === 0) label(name, rows.length - row, 2, "text-align: right; padding: 0 4px");
    });
    columns.forEach((name, column) => {
      if (column % stepX === 0) label(name, rows.length + 1, column + 3, "text-align: center; overflow: visible; white-space: nowrap; justify-self: center");
    });
    label(model.get("x_label"), rows.length + 2, `3 / span ${columns.length}`, "text-align: center; white-space: nowrap; justify-self: center");
    legend = label("", rows.length + 3, `3 / span ${columns.length}`, "color: #666; white-space: nowrap; justify-self: center; padding-top: 4px");
    buttons = rows.flatMap((_, row) => columns.map((_, column) => {
      const button = document.createElement("button");
      const small = width < 40 || height < 16;
      button.type = "button";
      button.style.cssText = `grid-row: ${rows.length - row}; grid-column: ${column + 3}; height: ${height}px; padding: 0; border: 0; border-radius: 2px; cursor: pointer; font-size: ${small ? 0 : 12}px; overflow: hidden`;
      button.addEventListener("click", () => choose(row * columns.length + column));
      button.addEventListener("keydown", (event) => {
        const move = { ArrowUp: [1, 0], ArrowDown: [-1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
        if (!move) return;
        const [r, c] = [row + move[0], column + move[1]];
        if (r >= 0 && r < rows.length && c >= 0 && c < columns.length) focus(r * columns.length + c);
        event.preventDefault();
        event.stopPropagation(); // the notebook has other uses for them
      });
      figure.append(button);
      return button;
    }));
    draw();
  }

  function draw() {
    model.get("cells").forEach((cell, i) => {
      const button = buttons[i];
      if (!button) return;
      button.textContent = cell.text;
      button.title = cell.title;
      button.setAttribute("aria-label", cell.title);
      button.style.color = cell.ink;
      button.style.background = cell.colour || "repeating-linear-gradient(45deg, #d9d9d9 0 4px, #c8c8c8 4px 6px)";
    });
    legend.textContent = model.get("legend");
    mark();
  }

  function mark() {
    const selected = model.get("selected");
    buttons.forEach((button, i) => {
      button.setAttribute("aria-pressed", String(i === selected));
      button.tabIndex = i === Math.max(0, selected) ? 0 : -1; // one stop of the Tab key for all
      button.style.outline = i === selected ? "3px solid rgb(237, 140, 51)" : "";
    });
  }

  function focus(i) {
    buttons.forEach((button) => (button.tabIndex = -1));
    buttons[i].tabIndex = 0;
    buttons[i].focus();
  }

  function choose(i) {
    model.set("selected", i);
    model.save_changes();
  }

  model.on("change:shape", build);
  model.on("change:cells", draw);
  model.on("change:selected", mark);
  build();
}

export default { render };
