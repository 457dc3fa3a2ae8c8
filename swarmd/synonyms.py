"""Words that mean nearly the same, in groups: what an embedder without a model can know of meaning.

Job: from a stem to the groups it is in. Written by hand: general English, and what software that works for people is
spoken of with. A word may be in several groups, and a group may be wrong for a text: it only adds a little likeness.
Must not know: vectors. Changing a group changes the vectors that are made of it, so it needs a new embedder's id.
"""

from __future__ import annotations

from functools import cache
from typing import Final

from swarmd.text import stem

_GROUPS: Final = """
begin start launch initiate commence open boot | end finish complete conclude close terminate done | stop halt cease
quit abort interrupt | continue resume proceed carry | pause suspend freeze hold | wait delay postpone defer pending
| create make build produce generate construct form | delete remove erase drop discard purge wipe clear | add append
insert include attach | change modify edit alter update adjust amend revise | replace substitute swap exchange
supersede | rename relabel | copy duplicate clone replicate mirror replica | move transfer relocate migrate shift |
send transmit submit post publish deliver dispatch | receive get obtain fetch retrieve acquire | give grant hand
assign allot allocate | take grab seize claim | keep retain preserve maintain hold store save | store save persist
record write keep | read load parse scan | find search locate discover look seek lookup query | show display print
present reveal view | hide conceal mask | list enumerate catalogue catalog index inventory | count number tally
total amount quantity | measure gauge metric benchmark meter | compare contrast versus differ difference | choose
select pick decide elect option choice | decide determine resolve judge verdict ruling | check verify validate
confirm inspect examine test | prove proof demonstrate evidence | allow permit let authorise authorize enable |
forbid prohibit deny refuse reject ban disallow decline block | accept approve agree consent | ask request query
question inquire demand | answer reply respond response | say tell state declare announce report notify inform |
explain describe clarify | know understand learn comprehend knowledge | think believe consider reckon opinion |
remember recall memory recollect memorise | forget lose | lose lost missing gone vanish disappear | try attempt
effort | retry repeat again redo | repeat duplicate twice recur | fail failure failed break broken malfunction fault
| error mistake bug defect wrong fault | crash die kill dead death collapse | problem issue trouble difficulty | fix
repair mend heal correct patch restore | restore recover recovery rebuild undo | rollback revert undo rewind |
prevent avoid stop protect | protect guard secure shield defend safety security safe | danger risk hazard unsafe
threat | attack hack exploit malicious hostile adversary | password secret credential key token passphrase | login
signin authenticate authentication sign | permission right privilege access authority role | encrypt tls ssl https
cipher encryption | user person people human somebody anyone operator customer client | customer client tenant buyer
account | owner possess own belong | team group crew gang | boss manager leader head chief supervisor | leader
master primary coordinator | follower replica standby secondary backup spare | worker agent helper executor | job
task work assignment | child subtask descendant sub | parent ancestor | member participant node | computer machine
server host box | server service daemon backend | process program application app software | system platform
framework | network internet web connection link | disconnect offline partition unreachable cut | connect attach
join link | broker bus messaging | message mail letter note | queue line backlog waiting | topic subject theme |
stream flow feed | log journal history record diary | event occurrence incident | file document paper | folder
directory | database db storage | disk drive storage ssd | memory ram | processor cpu core | big large huge great |
small little tiny minor | long lengthy | short brief concise | fast quick rapid speed swift speedy | slow sluggish
lag | latency delay lag response | throughput rate bandwidth | limit bound cap maximum ceiling quota restrict
restriction | minimum least floor | maximum most peak highest | full exhausted saturated | empty blank vacant |
enough sufficient adequate | more additional extra further | less fewer reduce decrease lower | increase grow raise
rise enlarge growth | shrink reduce decrease | high tall | many multiple several numerous | all every each whole
entire | none nothing | part piece section portion segment fraction share | split divide separate partition cut |
join merge combine unite fuse | mix blend | same equal identical alike equivalent | similar like resemble alike akin
| different distinct other unlike | new fresh recent novel | old ancient stale outdated former previous | previous
former earlier prior preceding | next following subsequent later | first initial earliest | last final latest | now
currently present | soon shortly | time clock hour | date day calendar | schedule cron timer recurring periodic |
daily everyday | period interval duration span | often frequently frequent | rare rarely seldom | always forever
permanently permanent | temporary transient ephemeral | expire lapse timeout | deadline due | late overdue delayed
tardy straggler | urgent priority important critical | important significant essential key vital | main principal
primary chief | simple easy plain straightforward | hard difficult complex complicated | automatic automatically
unattended | manual hand | buy purchase order | sell sale | pay payment spend money | cost price expense expensive
fee charge bill dear | cheap inexpensive affordable | budget allowance grant funds | refund reimburse reimbursement
moneyback | invoice bill receipt | free gratis available idle | busy occupied loaded overloaded | idle inactive
sleeping | load burden workload | overload overwhelm congestion | balance even distribute | distribute spread
scatter | scale scaling grow | elastic autoscale autoscaler scaling | deploy deployment release rollout install |
install setup | configure configuration setting option parameter config | default preset standard | version release
edition | upgrade update | test trial experiment | example sample instance | documentation manual guide tutorial
docs | help assist support aid | learn study train | teach train | plan strategy scheme | goal aim purpose objective
target | reason cause why because | effect result outcome consequence impact | result output outcome | input
argument parameter | function method procedure routine | type kind sort category class | format shape form layout
structure | text string words prose | word term | sentence phrase | paragraph passage section | chapter section |
summary summarise summarize digest abstract condense | language tongue | name title label identifier id | label tag
mark | number digit figure | address url location | place location position spot where | near close nearby | far
distant remote | inside within internal | outside external | above over | below under beneath | right correct true
accurate | false wrong incorrect invalid | valid legal legitimate correct | good well fine | bad poor | better
improve improvement enhance | best optimal | worse degrade degradation | reliable dependable robust trustworthy |
trust believe rely confidence | doubt suspect uncertain | certain sure definite | possible feasible can | need
require requirement must necessary | want wish desire | use utilise apply employ usage | useless vain | work
function operate run | run execute perform operate | invoke call | call phone | return give back | respond react |
listen hear | speak talk say | talk discuss discussion conversation chat dialogue | argue debate dispute argument |
vote ballot poll majority | agree consensus unanimous agreement | disagree conflict contradict contradiction clash |
win prevail | compete contend race competition | lock mutex exclusive | concurrent parallel simultaneous
simultaneously together | sequential serial | order sequence arrange sort | sort rank ordering | random chance
arbitrary | rule law policy regulation | policy strategy | promise guarantee assure ensure | contract agreement |
company firm business organisation organization enterprise | product goods item | item element entry member | object
thing | data information | information knowledge facts | fact truth | idea concept notion | picture image photo
drawing diagram | draw paint | color colour | sound noise audio | music song | video film movie | book novel | story
tale | school university | science research | research study investigation | doctor physician medic | medicine drug
| ill sick disease illness | health wellness | hospital clinic | food meal | fire burn | earth ground soil land |
sea ocean | river stream | mountain hill | forest wood | animal beast | dog hound | car automobile vehicle | drive
ride | train railway | plane aircraft airplane flight | ship boat vessel | road street route path way | travel
journey trip voyage | walk go | arrive come reach | leave depart exit | house home building | door gate | city town
| country nation state | world globe planet | war battle | law legal | child kid | family relatives | friend
companion | love like | hate dislike | happy glad | sad unhappy | fear afraid | surprise unexpected | beautiful
pretty | clean tidy | hot warm | cold cool | light bright | strong powerful robust | weak feeble | rich wealthy |
alive living live | real actual genuine | fake mock false | visible seen | watch observe monitor observation
watchdog | monitor supervise track | alert alarm warning warn notify | notice detect discover spot | silent quiet
mute silence | heartbeat ping beacon alive | health status condition | status state condition | quarantine isolate
separate | sandbox isolate isolation contain | container docker | region area zone | vector embedding | model llm |
prompt instruction | instruction command order | tool instrument | code source program | library package module |
interface api | endpoint url address | provider vendor supplier | shell terminal console | page site website |
download fetch | backup snapshot archive copy | archive store | snapshot checkpoint | replay reproduce | simulate
simulation model | debug diagnose troubleshoot | cancel abort revoke withdraw | revoke withdraw annul | confirm
approve | approval consent permission | reviewer critic | review assess evaluate rate | rate judge score | feedback
review opinion | score grade | fair fairness equitable | once single | twice double | percent percentage | average
mean | sum total add | minus subtract | idempotent repeatable | durable persistent lasting survive | survive outlive
| loss lose | corrupt damage damaged broken | hash digest checksum | overwrite replace | immutable unchangeable |
forge fake falsify | spam junk | throttle limit slow | burst spike | downtime outage unavailable | unavailable down
| uptime available | available ready | ready prepared | maintenance service | shutdown stop | restart reboot |
graceful gentle gently | abrupt sudden
"""


@cache
def by_stem() -> dict[str, tuple[int, ...]]:
    """The numbers of the groups of every stem that is in one."""
    found: dict[str, tuple[int, ...]] = {}
    for number, group in enumerate(_GROUPS.split("|")):
        for word in dict.fromkeys(stem(word) for word in group.split()):
            found[word] = (*found.get(word, ()), number)
    return found


def groups_of(word: str) -> tuple[int, ...]:
    """The numbers of the groups that a stem is in; none for most words."""
    return by_stem().get(word, ())
