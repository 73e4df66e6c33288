"use strict";
// What is left: shaded cells, the search over metrics, the button for light and dark; then everything is started.
document.querySelectorAll("td[data-share]").forEach((cell) => cell.style.setProperty("--share", cell.dataset.share));

document.querySelectorAll(".filter input").forEach((input) => {
  const rows = [...input.closest("section").querySelectorAll("table.long tbody tr")];
  const told = input.parentElement.querySelector("span");
  input.addEventListener("input", () => {
    const wanted = input.value.trim().toLowerCase();
    let count = 0;
    rows.forEach((row) => {
      row.hidden = !row.textContent.toLowerCase().includes(wanted);
      count += row.hidden ? 0 : 1;
    });
    told.textContent = wanted ? `${count} of ${rows.length}` : "";
  });
});

const themeButton = document.getElementById("theme");
const nameTheme = () => { themeButton.textContent = Theme.current() === "dark" ? "Light" : "Dark"; };
themeButton.addEventListener("click", () => Theme.toggle());
Theme.onChange(nameTheme);
nameTheme();

Charts.start();
Transcripts.start();
