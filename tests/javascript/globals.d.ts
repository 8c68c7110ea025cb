// Plotly is served from the installed package and loaded before the pages need it.
declare const Plotly: any;
interface Window {
  Plotly: any;
}
