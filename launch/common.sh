# shellcheck shell=bash
# Sourced by the launchers: parses options and implements --dry-run and error messages.

fail() { # MESSAGE: prints it and exits with code 2
    echo "$(basename "$0"): $*" >&2
    exit 2
}

usage() { # prints the script's header comment
    sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0"
}

parse() { # "OPTION ..." "FLAG ..." ARGUMENT ...
    # Sets the variable OPTION (in capitals) to the value of --option VALUE or --option=VALUE, FLAG
    # to 1 if --flag is given, the array ENV to the NAME=VALUE of all --env, COMMAND to the words
    # after --, and WORDS to the remaining words.
    local options=" $1 env " flags=" $2 dry-run " name value variable
    shift 2
    WORDS=() COMMAND=() ENV=() DRY_RUN=
    while [ $# -gt 0 ]; do
        name=${1#--}
        name=${name%%=*}
        variable=$(tr 'a-z-' 'A-Z_' <<<"$name")
        if [ "$1" = -- ]; then
            shift
            # shellcheck disable=SC2034 # the launcher reads it
            COMMAND=("$@")
            return
        elif [ "$1" = --help ] || [ "$1" = -h ]; then
            usage
            exit 0
        elif [[ $1 != -* ]]; then
            WORDS+=("$1")
        elif [[ $flags == *" $name "* && $1 == "--$name" ]]; then
            printf -v "$variable" 1
        elif [[ $options == *" $name "* ]]; then
            if [[ $1 == *=* ]]; then
                value=${1#*=}
            else
                [ $# -gt 1 ] || fail "--$name: expected a value, got nothing"
                value=$2
                shift
            fi
            if [ "$name" = env ]; then
                [[ $value =~ ^[A-Za-z_][A-Za-z0-9_]*= ]] || fail "--env: expected NAME=VALUE, got '$value'"
                ENV+=("$value")
            else
                printf -v "$variable" %s "$value"
            fi
        else
            # shellcheck disable=SC2086 # each option is a word
            fail "expected one of$(printf ' --%s' $options $flags), got '$1'"
        fi
        shift
    done
}

number() { # OPTION VALUE: fails unless the value is a positive integer
    [[ $2 =~ ^[1-9][0-9]*$ ]] || fail "$1: expected a positive integer, got '$2'"
}

quote() { # prints words, quoted for any shell
    local word text=
    for word; do
        [[ $word =~ ^[A-Za-z0-9_./:=,@%+-]+$ ]] || word="'${word//\'/\'\\\'\'}'"
        text+=" $word"
    done
    echo "${text# }"
}

run() { # COMMAND ...: prints and runs a command; with --dry-run, only prints it
    if [ -n "$DRY_RUN" ]; then
        quote "$@"
    else
        echo "+ $(quote "$@")" >&2
        "$@"
    fi
}
