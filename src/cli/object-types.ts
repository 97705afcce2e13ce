/** The types of objects that `--object` may define, and their properties.  @qemu qapi/qom.json */

import { BlockError } from "../block/errors.ts";
import { type OptionScalar, type Options, parseInteger } from "../block/options.ts";

/** A list of words: one of them. "nested": has members of its own, under `name.`. */
export type PropertyType = "string" | "bool" | "integer" | "nested" | readonly string[];

export interface PropertySpec {
  readonly type: PropertyType;
  readonly required?: boolean;
  /** As `help` shows the type; absent: it does not show the property. */
  readonly help?: string;
}

export interface ObjectType {
  /** As `help` names it, where that is another name. */
  readonly helpName?: string;
  /** In the order in which they are looked at. */
  readonly properties: Readonly<Record<string, PropertySpec>>;
}

/** What an object was defined with, typed. */
export type PropertyValues = Readonly<Record<string, string | number | boolean | undefined>>;

const string: PropertySpec = { type: "string", help: "string" };
const bool: PropertySpec = { type: "bool", help: "bool" };
const int: PropertySpec = { type: "integer", help: "int" };

const SECRET_COMMON = {
  /** Can't be set, but is known. */
  loaded: { type: "bool" },
  format: { type: ["raw", "base64"], help: "QCryptoSecretFormat" },
  keyid: string,
  iv: string,
} as const;

const TLS_CREDS = {
  "verify-peer": bool,
  dir: string,
  endpoint: { type: ["client", "server"], help: "QCryptoTLSCredsEndpoint" },
  priority: string,
} as const;

const THROTTLE_KINDS = ["iops-total", "iops-read", "iops-write", "bps-total", "bps-read", "bps-write"];

/** Those that qemu-img can make. */
const TYPES: Readonly<Record<string, ObjectType>> = {
  "authz-list": {
    properties: {
      policy: { type: ["deny", "allow"], help: "QAuthZListPolicy" },
      rules: { type: "nested", help: "QAuthZListRule" },
    },
  },
  "authz-listfile": {
    helpName: "authz-list-file",
    properties: { filename: { ...string, required: true }, refresh: bool },
  },
  "authz-simple": { properties: { identity: { ...string, required: true } } },
  "main-loop": { properties: { "aio-max-batch": int, "thread-pool-min": int, "thread-pool-max": int } },
  "pr-manager-helper": { properties: { path: { ...string, required: true } } },
  secret: { properties: { ...SECRET_COMMON, data: string, file: string } },
  secret_keyring: {
    properties: { ...SECRET_COMMON, serial: { type: "integer", help: "int32_t", required: true } },
  },
  "thread-context": {
    properties: {
      "cpu-affinity": { type: "nested", help: "int" },
      "node-affinity": { type: "nested", help: "int" },
    },
  },
  "throttle-group": {
    properties: {
      limits: { type: "nested", help: "ThrottleLimits" },
      ...Object.fromEntries(
        THROTTLE_KINDS.flatMap((kind) =>
          ["", "-max", "-max-length"].map((part) => [`x-${kind}${part}`, int] as const),
        ),
      ),
      "x-iops-size": int,
    },
  },
  "tls-cipher-suites": { properties: TLS_CREDS },
  "tls-creds-anon": { properties: TLS_CREDS },
  "tls-creds-psk": { properties: { ...TLS_CREDS, username: string } },
  "tls-creds-x509": { properties: { ...TLS_CREDS, "sanity-check": bool, passwordid: string } },
};

/** Those that only a virtual machine can make, with the first property that must be given. */
const OTHER_TYPES: Readonly<Record<string, string | undefined>> = {
  "authz-pam": "service",
  "can-bus": undefined,
  "can-host-socketcan": "if",
  "colo-compare": "primary_in",
  "cryptodev-backend": undefined,
  "cryptodev-backend-builtin": undefined,
  "cryptodev-backend-lkcf": undefined,
  "cryptodev-vhost-user": "chardev",
  "dbus-vmstate": "addr",
  "filter-buffer": "netdev",
  "filter-dump": "netdev",
  "filter-mirror": "netdev",
  "filter-redirector": "netdev",
  "filter-replay": "netdev",
  "filter-rewriter": "netdev",
  "input-barrier": "name",
  "input-linux": "evdev",
  iothread: undefined,
  "memory-backend-epc": "size",
  "memory-backend-file": "size",
  "memory-backend-memfd": "size",
  "memory-backend-ram": "size",
  "pef-guest": undefined,
  qtest: "chardev",
  "rng-builtin": undefined,
  "rng-egd": "chardev",
  "rng-random": undefined,
  "s390-pv-guest": undefined,
  "sev-guest": "reduced-phys-bits",
  "x-remote-object": "fd",
  "x-vfio-user-server": "socket",
};

/** The type of that name; undefined: QEMU has it, but its tools do not. Throws for one that nobody knows. */
export function findObjectType(name: string): ObjectType | undefined {
  if (Object.hasOwn(TYPES, name)) return TYPES[name];
  if (Object.hasOwn(OTHER_TYPES, name)) return undefined;
  throw invalid(`Parameter 'qom-type' does not accept value '${name}'`);
}

/** Refuses a definition for lack of what the type must be given, before the type itself is. */
export function checkForeign(name: string, options: Options): void {
  const required = OTHER_TYPES[name];
  if (required !== undefined && !options.has(required)) throw invalid(`Parameter '${required}' is missing`);
}

/** `secret,help` or, without a name that can be made, the list of all. */
export function objectHelp(name: string | undefined): string {
  const all = Object.entries(TYPES).map(([key, type]) => ({ name: type.helpName ?? key, type }));
  const found = all.find((candidate) => candidate.name === name);
  if (!found) {
    const names = all.map((each) => `  ${each.name}\n`).sort();
    return `List of user creatable objects:\n${names.join("")}`;
  }
  const lines = Object.entries(found.type.properties).flatMap(([key, { help }]) =>
    help === undefined ? [] : [`  ${key}=<${help}>\n`],
  );
  return `${found.name} options:\n${lines.sort().join("")}`;
}

/**
 * Takes the properties of `type` out of `options` and gives each its type. `typed`: they came as JSON, and must be
 * of their types already. What is nested stays.
 */
export function takeProperties({ properties }: ObjectType, options: Options, typed: boolean): PropertyValues {
  const values: Record<string, string | number | boolean> = {};
  for (const [key, spec] of Object.entries(properties)) {
    const value = options.get(key);
    if (value === undefined) {
      if (typed && spec.type !== "nested" && hasMembers(options, key))
        throw wrongType(key, jsonName(spec.type));
      if (spec.required) throw invalid(`Parameter '${key}' is missing`);
      continue;
    }
    if (hasMembers(options, key)) throw invalid(`Parameters '${key}.*' used inconsistently`);
    values[key] = (typed ? checkTyped : parseText)(key, spec.type, value);
    options.delete(key);
  }
  return values;
}

function hasMembers(options: Options, key: string): boolean {
  return [...options.keys()].some((other) => other.startsWith(`${key}.`));
}

/** What nobody has taken. */
export function refuseLeftOver({ properties }: ObjectType, options: Options, typed: boolean): void {
  for (const key of options.keys()) {
    const [first = key, ...inner] = key.split(".");
    if (inner.length > 0 && properties[first]?.type === "nested") continue;
    if (inner.length === 0 || typed) throw invalid(`Parameter '${first}' is unexpected`);
    throw invalid(`Parameters '${first}.*' are unexpected`);
  }
}

const JSON_NAMES = { string: "string", bool: "boolean", integer: "integer", nested: "object" } as const;

function jsonName(type: PropertyType): string {
  return typeof type === "string" ? JSON_NAMES[type] : "string";
}

function checkTyped(key: string, type: PropertyType, value: OptionScalar): string | number | boolean {
  const expected = jsonName(type);
  const actual = Number.isInteger(value) ? "integer" : typeof value;
  if (actual !== expected) throw wrongType(key, expected);
  return parseText(key, typeof type === "string" ? "string" : type, value) as string;
}

function parseText(key: string, type: PropertyType, value: OptionScalar): string | number | boolean {
  switch (type) {
    case "string":
      return value ?? "";
    case "nested":
      throw wrongType(key, "object");
    case "integer": {
      const number = parseInteger(String(value));
      if (number === undefined) throw invalid(`Parameter '${key}' expects integer`);
      return number;
    }
    case "bool":
      if (["on", "yes", "true", "y"].includes(String(value))) return true;
      if (["off", "no", "false", "n"].includes(String(value))) return false;
      throw invalid(`Parameter '${key}' expects 'on' or 'off'`);
    default:
      if (!type.includes(String(value))) throw invalid(`Parameter '${key}' does not accept value '${value}'`);
      return String(value);
  }
}

function wrongType(key: string, expected: string): BlockError {
  return invalid(`Invalid parameter type for '${key}', expected: ${expected}`);
}

function invalid(message: string): BlockError {
  return new BlockError("EINVAL", message);
}
