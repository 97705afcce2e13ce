/**
 * Options as getopt_long takes them: grouped (-pq), with the value attached or apart (-fraw, -f raw, --a=b, --a b),
 * long ones by any unambiguous beginning, between and behind operands, up to `--`.  @qemu getopt_long
 *
 * yargs-parser was tried and is not used: it cannot tell `-pq` with an unknown q from a known p, has no
 * unambiguous beginnings, and answers when all is parsed, where qemu-img stops at the first thing that is wrong.
 */

export interface OptionSpec {
  /** What the parser calls it; unique in its command. */
  readonly name: string;
  /** One letter, for `-x`. */
  readonly short?: string;
  /** For `--long`. */
  readonly long?: string;
  /** The option takes a value, which is shown by this word in help. */
  readonly value?: string;
  /** For help; without it the option is not shown. */
  readonly help?: string;
}

export interface ParsedOption {
  readonly name: string;
  /** "" where the option takes no value. */
  readonly value: string;
}

/** What is wrong with an option. `argument` is what qemu-img names in its message. */
export interface OptionFault {
  readonly kind: "unknown" | "missing-value";
  readonly argument: string;
  /** The C library's own words, which some of qemu's tools leave it at. */
  readonly text: string;
}

export class OptionError extends Error {
  readonly fault: OptionFault;

  constructor(fault: OptionFault) {
    super(`${fault.kind}: ${fault.argument}`);
    this.fault = fault;
  }
}

/** `--help` was met; the frame prints help and exits with 0. */
export class HelpRequest extends Error {}

/** The row that most commands have; met in a loop over the options, it ends the loop with a HelpRequest. */
export const HELP_OPTION: OptionSpec = { name: "help", short: "h", long: "help", help: "Show this help" };

export interface GetoptSettings {
  /** The first operand ends the options, as with a `+` in getopt's string. */
  readonly stopAtOperand?: boolean;
  /** Takes an option that means the same in every command, and says whether it was one: `next` does not give it. */
  readonly takeCommon?: (option: ParsedOption) => boolean;
}

/** Walks over arguments: `next` gives one option after the other, and then `operands` has all that were none. */
export class Getopt {
  readonly operands: string[] = [];
  #args: readonly string[];
  readonly #specs: readonly OptionSpec[];
  /** The word before the arguments: the command, or the program. */
  readonly command: string;
  readonly #stopAtOperand: boolean;
  readonly #takeCommon: (option: ParsedOption) => boolean;
  #index = 0;
  /** The rest of a group of short options. */
  #group = "";

  constructor(
    command: string,
    args: readonly string[],
    specs: readonly OptionSpec[],
    { stopAtOperand = false, takeCommon = () => false }: GetoptSettings = {},
  ) {
    this.command = command;
    this.#args = args;
    this.#specs = specs;
    this.#stopAtOperand = stopAtOperand;
    this.#takeCommon = takeCommon;
  }

  /** Takes the last word away, whatever it looks like; undefined if there is none. Called before `next`. */
  takeLast(): string | undefined {
    const last = this.#args.at(-1);
    this.#args = this.#args.slice(0, -1);
    return last;
  }

  get isEmpty(): boolean {
    return this.#args.length === 0;
  }

  /** The next option; undefined when there is none left. Throws OptionError. */
  next(): ParsedOption | undefined {
    for (;;) {
      const option = this.#take();
      if (!option || !this.#takeCommon(option)) return option;
    }
  }

  #take(): ParsedOption | undefined {
    if (this.#group !== "") return this.#nextInGroup();
    for (;;) {
      const argument = this.#args[this.#index];
      if (argument === undefined) return undefined;
      if (argument === "--" || (this.#stopAtOperand && !isOption(argument))) {
        this.operands.push(...this.#args.slice(this.#index + (argument === "--" ? 1 : 0)));
        this.#index = this.#args.length;
        return undefined;
      }
      if (isOption(argument)) break;
      this.operands.push(argument);
      this.#index++;
    }
    const argument = this.#args[this.#index] as string;
    if (argument.startsWith("--")) return this.#long(argument);
    this.#group = argument.slice(1);
    return this.#nextInGroup();
  }

  *[Symbol.iterator](): Generator<ParsedOption, void> {
    for (let option = this.next(); option; option = this.next()) {
      if (option.name === HELP_OPTION.name) throw new HelpRequest();
      yield option;
    }
  }

  #nextInGroup(): ParsedOption {
    const argument = this.#args[this.#index] as string;
    const letter = this.#group.charAt(0);
    const rest = this.#group.slice(1);
    const spec = this.#specs.find(({ short }) => short === letter);
    if (!spec) {
      this.#group = rest;
      // In the middle of a group getopt has not moved on yet, and a message names the argument before.
      const named = rest === "" ? argument : this.#argumentBefore();
      if (rest === "") this.#index++;
      throw new OptionError({ kind: "unknown", argument: named, text: `invalid option -- '${letter}'` });
    }
    if (spec.value === undefined) {
      this.#group = rest;
      if (rest === "") this.#index++;
      return { name: spec.name, value: "" };
    }
    this.#group = "";
    this.#index++;
    if (rest !== "") return { name: spec.name, value: rest };
    const text = `option requires an argument -- '${letter}'`;
    return { name: spec.name, value: this.#takeValue(argument, text) };
  }

  #long(argument: string): ParsedOption {
    this.#index++;
    const equals = argument.indexOf("=");
    const given = argument.slice(2, equals < 0 ? undefined : equals);
    const spec = this.#findLong(given);
    if (!spec || (equals >= 0 && spec.value === undefined))
      throw new OptionError({ kind: "unknown", argument, text: this.#longFault(given, spec) });
    if (spec.value === undefined) return { name: spec.name, value: "" };
    if (equals >= 0) return { name: spec.name, value: argument.slice(equals + 1) };
    return {
      name: spec.name,
      value: this.#takeValue(argument, `option '--${spec.long}' requires an argument`),
    };
  }

  /** Why `--given` is refused; `found` is the option that it means, which takes no value. */
  #longFault(given: string, found: OptionSpec | undefined): string {
    // Where there are no long ones, the second hyphen is a letter like any other.
    if (!this.#specs.some(({ long }) => long !== undefined)) return "invalid option -- '-'";
    if (found) return `option '--${found.long}' doesn't allow an argument`;
    const meant = this.#specs.filter(({ long }) => long?.startsWith(given));
    if (meant.length === 0) return `unrecognized option '--${given}'`;
    return `option '--${given}' is ambiguous; possibilities:${meant.map(({ long }) => ` '--${long}'`).join("")}`;
  }

  #findLong(given: string): OptionSpec | undefined {
    const exact = this.#specs.find(({ long }) => long === given);
    if (exact) return exact;
    const beginnings = this.#specs.filter(({ long }) => long?.startsWith(given));
    return beginnings.length === 1 ? beginnings[0] : undefined;
  }

  #takeValue(argument: string, text: string): string {
    const value = this.#args[this.#index];
    if (value === undefined) throw new OptionError({ kind: "missing-value", argument, text });
    this.#index++;
    return value;
  }

  /** Operands that have been passed over stand before the option by now, for getopt sorts as it goes. */
  #argumentBefore(): string {
    return this.operands.at(-1) ?? this.#args[this.#index - 1] ?? this.command;
  }
}

function isOption(argument: string): boolean {
  return argument.startsWith("-") && argument !== "-";
}
