// Loaded before anything is drawn, so that the chosen colours do not flash in late.
const theme = localStorage.getItem('berth.theme');
if (theme === 'light' || theme === 'dark') {
    document.documentElement.dataset.theme = theme;
}
