/** The options of every driver as one discriminated union, computed from the drivers' own option tables: a wrong option is a compile error. */

import type { DriverChildren, DriverLists, Drivers } from "../../drivers/index.ts";
import type { OptionTable, OptionValues } from "../block/options.ts";

/** What `DriverOptions` is computed from: any driver fits. */
interface TypedDriver {
  readonly formatName: string;
  readonly kind: "protocol" | "format" | "filter";
  readonly options: OptionTable;
}

/** Options that every node has.  @qemu BlockdevOptions, its base */
export interface NodeOptions {
  /** By which other options and messages name the node: a letter, then letters, digits, `-`, `.` and `_`; 31 at most. */
  readonly "node-name"?: string;
  readonly "read-only"?: boolean;
  /** Falls back to read-only where writing is refused. */
  readonly "auto-read-only"?: boolean;
  /** Others may do what they like with the image meanwhile; only for read-only nodes. */
  readonly "force-share"?: boolean;
  readonly cache?: {
    /** Bypass the host's page cache. */
    readonly direct?: boolean;
    /** Flushes need not reach the disk. */
    readonly "no-flush"?: boolean;
  };
  /** Whether discards are passed down. */
  readonly discard?: "ignore" | "off" | "unmap" | "on";
  /** Whether data that is all zeroes is written as zeroes; `unmap` wants `discard: "unmap"` too. */
  readonly "detect-zeroes"?: "off" | "on" | "unmap";
}

/**
 * Types of a user's own drivers, by format name; a declaration merged into it makes their options known:
 *
 *     declare module "bdrv" {
 *       interface CustomDrivers { xor: typeof xor }
 *     }
 */
export interface CustomDrivers {}

type Known = Drivers & CustomDrivers;

/** A node to be opened: the options of its driver, of every node, and its children. */
export type DriverOptions = NamedDriverOptions[keyof NamedDriverOptions] | ProbedOptions;

/** The same by the driver's name: `OptionsOf<"raw">`. */
export type OptionsOf<N extends keyof NamedDriverOptions> = NamedDriverOptions[N];

type NamedDriverOptions = {
  [N in keyof Known]: Known[N] extends TypedDriver
    ? { readonly driver: N } & NodeOptions &
        OwnOptions<Known[N]["options"]> &
        Lists<N> &
        Children<N, Known[N]["kind"]>
    : never;
};

/** A driver without options of its own has no table in its type. */
type OwnOptions<T extends OptionTable> = string extends keyof T ? unknown : OptionValues<T>;

/** Lists of groups of options. */
type Lists<N> = N extends keyof DriverLists ? Partial<DriverLists[N]> : unknown;

/** A format that is found by probing: only its file is told. */
export interface ProbedOptions extends NodeOptions {
  readonly driver?: never;
  readonly file: ChildOptions;
  readonly backing?: ChildOptions | null;
}

/** A file or device by its plain name, with no prefix and no format. */
export interface FilenameOptions extends NodeOptions {
  readonly driver?: never;
  readonly filename: string;
}

/** A child: a node to be opened, or the name of one that is open. */
export type ChildOptions = string | DriverOptions | FilenameOptions;

/** The children of a driver; null says that there is to be none. */
type Children<N, K> = N extends keyof DriverChildren
  ? {
      readonly [C in keyof DriverChildren[N] as DriverChildren[N][C] extends true ? C : never]: ChildOptions;
    } & {
      readonly [C in keyof DriverChildren[N] as DriverChildren[N][C] extends true
        ? never
        : C]?: ChildOptions | null;
    }
  : K extends "protocol"
    ? unknown
    : { readonly file: ChildOptions };

/** A format that can be created, and the table of its create options. */
interface CreatableDriver {
  readonly kind: "format";
  readonly createOptions?: OptionTable;
}

/** Told by other words than `options`. */
type CreateArgument = "size" | "backing_file" | "backing_fmt";

type CreateTables = {
  [N in keyof Known as Known[N] extends CreatableDriver ? N : never]: Known[N] extends CreatableDriver
    ? NonNullable<Known[N]["createOptions"]>
    : never;
};

/** Names of the formats of which images can be created. */
export type CreatableFormat = {
  [N in keyof CreateTables]: string extends keyof CreateTables[N] ? never : N;
}[keyof CreateTables];

type FileTable = NonNullable<Known["file"]["createOptions"]>;

/**
 * The create options of a format, and of the file it is made in, under qemu-img's names (`-o`): sizes in bytes, on
 * and off as booleans.
 */
export type CreateOptionsOf<N extends CreatableFormat> = Omit<
  OptionValues<CreateTables[N]> & Omit<OptionValues<FileTable>, keyof CreateTables[N]>,
  CreateArgument
>;

/** A format with its create options. */
export type FormatOptions = {
  [N in CreatableFormat]: { readonly format: N; readonly options?: CreateOptionsOf<N> };
}[CreatableFormat];
