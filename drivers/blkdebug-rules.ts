/** blkdebug's rules as users write them: dotted options and configuration files.  @qemu docs/devel/blkdebug.rst */

import { BlockError } from "../src/block/errors.ts";
import { type Options, type OptionTable, takeOptions, takePrefix } from "../src/block/options.ts";

/** What drivers and the core announce on their way, by the names of QEMU's BlkdebugEvent. */
export const EVENTS: ReadonlySet<string> = new Set([
  "l1_update",
  "l1_grow_alloc_table",
  "l1_grow_write_table",
  "l1_grow_activate_table",
  "l1_shrink_write_table",
  "l1_shrink_free_l2_clusters",
  "l2_load",
  "l2_update",
  "l2_update_compressed",
  "l2_alloc_cow_read",
  "l2_alloc_write",
  "read_aio",
  "read_backing_aio",
  "read_compressed",
  "write_aio",
  "write_compressed",
  "vmstate_load",
  "vmstate_save",
  "cow_read",
  "cow_write",
  "cor_write",
  "reftable_load",
  "reftable_grow",
  "reftable_update",
  "refblock_load",
  "refblock_update",
  "refblock_update_part",
  "refblock_alloc",
  "refblock_alloc_hookup",
  "refblock_alloc_write",
  "refblock_alloc_write_blocks",
  "refblock_alloc_write_table",
  "refblock_alloc_switch_table",
  "cluster_alloc",
  "cluster_alloc_bytes",
  "cluster_alloc_space",
  "cluster_free",
  "flush_to_os",
  "flush_to_disk",
  "pwritev_rmw_head",
  "pwritev_rmw_after_head",
  "pwritev_rmw_tail",
  "pwritev_rmw_after_tail",
  "pwritev",
  "pwritev_zero",
  "pwritev_done",
  "empty_image_prepare",
  "none",
]);

export const IO_TYPES = ["read", "write", "write-zeroes", "discard", "flush", "block-status"] as const;
export type IoType = (typeof IO_TYPES)[number];

/** One rule: what happens when `event` comes while the state is `state` (0: any). */
export interface RuleOptions {
  readonly action: "inject-error" | "set-state" | "suspend";
  readonly event: string;
  readonly state: number;
  /** Requests that fail. */
  readonly ioTypes: ReadonlySet<IoType>;
  /** Positive; 0: no error after all. */
  readonly errno: number;
  /** The request must hold this sector of 512 bytes; -1: any request. */
  readonly sector: number;
  /** Gone after the first error. */
  readonly once: boolean;
  /** The error comes before the request gives way to others. */
  readonly immediately: boolean;
  /** For "set-state". */
  readonly newState: number;
  /** For "suspend". */
  readonly tag?: string;
}

const COMMON = { event: { type: "string" }, state: { type: "number" } } as const;

/** The options of a rule, by the section it stands in. */
export const SECTIONS = {
  "inject-error": {
    ...COMMON,
    iotype: { type: "string" },
    errno: { type: "number" },
    sector: { type: "number" },
    once: { type: "bool" },
    immediately: { type: "bool" },
  },
  "set-state": { ...COMMON, new_state: { type: "number" } },
} as const satisfies Record<string, OptionTable>;

type SectionName = keyof typeof SECTIONS;

/** The rules of a configuration file's text, then those of `inject-error.N.` and `set-state.N.` options. */
export function readRules(config: string, options: Options): RuleOptions[] {
  const sections: Record<SectionName, Options[]> = { "inject-error": [], "set-state": [] };
  for (const { name, values } of parseConfig(config)) sections[name].push(values);
  for (const name of ["inject-error", "set-state"] as const) {
    const given = takePrefix(options, `${name}.`);
    sections[name].push(...numberedSections(name, given));
  }
  return [
    ...sections["inject-error"].map(injectErrorRule),
    ...sections["set-state"].map((values): RuleOptions => {
      const { event, state = 0, new_state: newState = 0 } = takeOptions(SECTIONS["set-state"], values);
      return { ...ruleOf("set-state", event, state), newState };
    }),
  ];
}

function injectErrorRule(values: Options): RuleOptions {
  const { event, state = 0, iotype, errno = 5, ...rest } = takeOptions(SECTIONS["inject-error"], values);
  const rule = ruleOf("inject-error", event, state);
  return {
    ...rule,
    ioTypes: iotype === undefined ? rule.ioTypes : new Set([parseIoType(iotype)]),
    errno,
    sector: rest.sector ?? -1,
    once: rest.once ?? false,
    immediately: rest.immediately ?? false,
  };
}

function ruleOf(action: RuleOptions["action"], event: string | undefined, state: number): RuleOptions {
  if (event === undefined) throw new BlockError("EINVAL", "Missing event name for rule");
  if (!EVENTS.has(event)) throw new BlockError("EINVAL", `invalid parameter value: ${event}`);
  // Block status is only asked, so it fails only where a rule says so.
  const ioTypes = new Set(IO_TYPES.filter((type) => type !== "block-status"));
  return {
    action,
    event,
    state,
    ioTypes,
    errno: 0,
    sector: -1,
    once: false,
    immediately: false,
    newState: 0,
  };
}

function parseIoType(name: string): IoType {
  const type = IO_TYPES.find((each) => each === name);
  if (type === undefined) throw new BlockError("EINVAL", `invalid parameter value: ${name}`);
  return type;
}

/** "0.event", "0.once", "1.event", ...: counted from 0 without a gap.  @qemu qemu_config_parse_qdict */
function numberedSections(name: SectionName, given: Options): Options[] {
  const sections: Options[] = [];
  for (;;) {
    const values = takePrefix(given, `${sections.length}.`);
    if (values.size === 0) break;
    for (const key of values.keys())
      if (!Object.hasOwn(SECTIONS[name], key))
        throw new BlockError("EINVAL", `[${name}] section doesn't support the option '${key}'`);
    sections.push(values);
  }
  const [left] = given.keys();
  if (left !== undefined) throw new BlockError("EINVAL", `Unused option '${left}' for [${name}]`);
  return sections;
}

/** Sections in brackets with `key = "value"` lines; `#` starts a comment.  @qemu qemu_config_parse */
function parseConfig(text: string): { readonly name: SectionName; readonly values: Options }[] {
  const sections: { readonly name: SectionName; readonly values: Options }[] = [];
  for (const line of text.split(/(?<=\n)/)) {
    if (line === "" || line === "\n" || line.startsWith("#")) continue;
    const group = /^\[\s*(\S+)\s+"[^"]+"/.exec(line)?.[1] ?? /^\[([^\]]+)/.exec(line)?.[1];
    if (group !== undefined) {
      if (!isSectionName(group)) throw new BlockError("EINVAL", `There is no option group '${group}'`);
      sections.push({ name: group, values: new Map() });
      continue;
    }
    const pair = /^\s*(\S+)(?:\s+=(?:\s*"([^"]*)")?)?/.exec(line);
    if (!pair) throw new BlockError("EINVAL", "parse error");
    const section = sections.at(-1);
    if (!section) throw new BlockError("EINVAL", "no group defined");
    const key = pair[1] as string;
    if (!Object.hasOwn(SECTIONS[section.name], key))
      throw new BlockError("EINVAL", `Invalid parameter '${key}'`);
    section.values.set(key, pair[2] ?? "");
  }
  return sections;
}

function isSectionName(name: string): name is SectionName {
  return Object.hasOwn(SECTIONS, name);
}
