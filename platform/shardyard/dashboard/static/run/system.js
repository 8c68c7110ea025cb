// Which curves are about machines, and whose they are: the run's as a whole, a node's, or a GPU's.

const MACHINE = ["perf", "memory", "gpu", "cpu", "network", "disk", "power", "energy", "system", "node"];

// {prefix: [names]} → {group: [names]}. A name such as system/node-a/gpu.0.temp belongs to GPU 0 of node-a.
export function machineGroups(metrics) {
  const groups = {};
  for (const [prefix, names] of Object.entries(metrics)) {
    if (!MACHINE.includes(prefix)) continue;
    for (const name of names) (groups[owner(prefix, name)] ??= []).push(name);
  }
  return groups;
}

function owner(prefix, name) {
  const gpu = name.match(/(?:^|[/.])gpu[./_]?(\d+)(?=[/.]|$)/);
  const parts = name.split("/");
  const node = prefix === "system" && parts.length > 2 && !/^gpu/.test(parts[1]) ? parts[1] : "";
  if (!gpu && !node) return prefix;
  return [node, gpu && `GPU ${gpu[1]}`].filter(Boolean).join(" ");
}
