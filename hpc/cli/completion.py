"""``hpc completion bash|zsh|fish``: the script that makes the Tab key complete commands of ``hpc``."""

from __future__ import annotations

import argparse

HELP = "print the script that makes the Tab key complete commands of hpc"

# What is offered is decided by `hpc complete`. No word that was typed and no name of a run is ever evaluated: they
# are handed over as arguments, and come back as text that is quoted before it is put on the line.
BASH = r"""# Tab completion of hpc. Once: echo 'eval "$(hpc completion bash)"' >> ~/.bashrc
_hpc() {
    # Where "=" and ":" part words, put them together again: COMP_WORDS has job.time = 1:00 for job.time=1:00.
    local -a words=() found=()
    local index joined="" word line skip="" breaks="${COMP_WORDBREAKS//[^=:]/}"
    for ((index = 1; index <= COMP_CWORD; index++)); do
        word="${COMP_WORDS[index]}"
        if ((${#words[@]})) && [[ -n $breaks && ( $joined || $word == [=:]* ) && -n $word ]]; then
            words[${#words[@]}-1]+="$word"
        else
            words+=("$word")
        fi
        [[ -n $breaks && $word == *[=:] ]] && joined=1 || joined=""
    done
    word="${words[${#words[@]}-1]}"
    # Of such a word only what stands behind the last of these is replaced, unless it is quoted.
    if [[ -n $breaks && $word == *["$breaks"]* && $word != *[\'\"]* ]]; then
        skip="${word%"${word##*["$breaks"]}"}"
    fi
    COMPREPLY=()
    local space="" quoted
    while IFS= read -r line; do
        line="${line%%$'\t'*}"
        [[ $line == *[=.,] ]] || space=1
        line="${line:${#skip}}"
        if [[ $word == *[\'\"]* ]]; then
            # Behind an open quote it is put there as it is: not what could end the quote or be expanded in it.
            [[ $line == *[\'\"\\\$\`!]* ]] || COMPREPLY+=("$line")
        else
            printf -v quoted %q "$line"
            COMPREPLY+=("${quoted//\\,/,}") # a comma alone means nothing to the shell
        fi
    done < <(command hpc complete --quoted -- "${words[@]}" 2>/dev/null)
    if ((${#COMPREPLY[@]})) && [[ -z $space ]]; then
        compopt -o nospace 2>/dev/null
    fi
}
complete -o default -o nosort -F _hpc hpc 2>/dev/null || complete -o default -F _hpc hpc
"""

ZSH = r"""#compdef hpc
# Tab completion of hpc. Once: echo 'source <(hpc completion zsh)' >> ~/.zshrc (below compinit)
_hpc() {
    local -a whole begun whole_about begun_about
    local line text about
    while IFS= read -r line; do
        text="${line%%$'\t'*}" about="${line#*$'\t'}"
        [[ -n $about ]] && about="$text  -- $about" || about="$text"
        if [[ $text == *[=.,] ]]; then
            begun+=("$text") begun_about+=("$about")
        else
            whole+=("$text") whole_about+=("$about")
        fi
    done < <(command hpc complete -- "${(Q@)words[2,CURRENT]}" 2>/dev/null)
    if (( $#whole + $#begun == 0 )); then
        _files
        return
    fi
    (( $#whole )) && compadd -l -V hpc -d whole_about -- "${whole[@]}"
    (( $#begun )) && compadd -l -V hpc -S '' -d begun_about -- "${begun[@]}"
}
if (( ! $+functions[compdef] )); then
    autoload -Uz compinit && compinit
fi
compdef _hpc hpc
"""

FISH = r"""# Tab completion of hpc. Once: hpc completion fish > ~/.config/fish/completions/hpc.fish
function __hpc_complete
    set -l words (commandline --tokenize --cut-at-cursor --current-process)
    set -l word (commandline --current-token --cut-at-cursor | string collect)
    command hpc complete --quoted -- $words[2..-1] "$word" 2>/dev/null
end
complete --command hpc --no-files --keep-order --arguments '(__hpc_complete)'
"""

SCRIPTS = {"bash": BASH, "zsh": ZSH, "fish": FISH}


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="hpc completion",
        description=HELP,
        epilog='In ~/.bashrc: eval "$(hpc completion bash)". In ~/.zshrc, below compinit: '
        "source <(hpc completion zsh). For fish: hpc completion fish > ~/.config/fish/completions/hpc.fish",
    )
    parser.add_argument("shell", choices=tuple(SCRIPTS), help="the shell that reads it")
    print(SCRIPTS[parser.parse_args(argv).shell], end="")
    return 0
