"""How much a word tells: less for those that are in every text, by a frozen table.

Job: from a stem to a weight between 0.5 and 1. The table holds the 600 commonest stems of the docstrings and comments
of Python's standard library, by (ln(n / df) / ln n) ** 0.4 of the paragraphs that they are in (Spärck Jones, "A
Statistical Interpretation of Term Specificity", 1972, flattened since the texts to come are others), rounded to 0.05,
and 300 of the commonest English words. It is frozen since weights that followed the texts at hand would make vectors
of one embedder that cannot be compared.
Must not know: vectors. Changing a weight changes the vectors that are made with it, so it needs a new embedder's id.
"""

from __future__ import annotations

from typing import Final

_BY_WEIGHT: Final = {
    0.50: """
return use
""",
    0.55: """
call file name object
""",
    0.60: """
argument class default function line list method modul none option python rais set string valu
""",
    0.65: """
add attribut byte case charact code command contain creat current data defin directori encod error except fals first
get given header implement instanc like messag need new note number one pass path provid read result see specifi
support time true tupl type
""",
    0.70: """
abl across actual address allow almost along alreadi although alway anoth answer anyth appear area arg around art
ask avail away back bad base becaus becom begin believ best better big bit block bodi book bring build busi buy came
car cent certain chang check child citi close come common compani compil connect consid content context continu
convert copi cut day decid decod dict dictionari die differ direct document done door earli easi educ eight element
els empti end enough even event ever everi everybodi everyth exampl execut exist expect eye face fact fall far
father feel filenam find five flag follow forc format found four free friend full game general generat give go good
got govern great group grow half hand handl happen hard head health hear hello help high histori hold home hour hous
howev http hundr idea ignor import includ inform input instead integ issu item iter job keep key keyword kill kind
know larg last later law lead learn least leav less let level life littl live local long look lose lot love made
main make man mani map match mayb mean meet member million minut mode moment money month morn move much never next
nine non noth now offer offic often old open oper order os otherwis output packag paramet parent pars part parti pay
peopl perhap person place play pleas point posit possibl power print problem process public pull put py question
reach real realli reason remain rememb remov replac report request requir research rfc right room run said say
second seem self sell send sequenc serv server servic seven sever show side simpl sinc singl sit six small someon
someth soon sourc speak specif spend stand standard start stay still stop stori stream studi subclass suggest sure
sys system take talk teacher team tell ten test text thank therefor thing think third though thousand thread three
today togeth took tri turn turtl two understand user usual variabl version wait walk want war watch water way week
well went whole widget win window woman word work world wors worst write year yes young
""",
    0.75: """
accept access accord addit api append applic appropri archiv ascii assum attempt automat avoid binari bound buffer
cach callabl callback cancel caus charset client codec compar compat complet comput configur construct constructor
control cooki correct correspond count custom debug decim delet depend describ detail determin dir display distribut
ensur entri environ equal equival exact exit explicit express extens extra fail field final fix float form frame
futur global handler identifi index indic info init initi instal int interfac internal interpret invok left length
librari limit link load locat log loop manag mark modifi multipl namespac necessari negat newlin node normal occur
org origin overrid pair parser pattern perform platform port prefix present previous program protocol queue quot
rang record recurs refer regist relat releas repres represent resourc respons root script search section select
separ share signal similar size socket sort space spec special stack state store str suppli target termin timeout
token traceback tree txt unicod unix unless updat url valid valueerror warn whitespac width wrap written xml xxx
yield zero
""",
    0.80: """
abc absolut abstract action algorithm altern appli arbitrari assign associ author backward basic behavior bind
boolean bpo break bug built builtin calcul caller canva children chunk clear collect color column com comment
comparison compon compress condit consist constant convers coordin copyright coroutin counter date decor def definit
deriv descript descriptor digit distutil doc docstr doctest dot effect email enabl entir eof escap extend
extendedcontext extract factori failur featur filter foo func gencodec generic hash helper host html https id ie
immedi indent inherit insert instanti intend invalid io ip join json len lib liter loader lock logger max maximum
memori mock msg nan network numer obj offset omit operand param particular pathnam pep pickl pipe polici posix
prevent probabl produc proper properti purpos queri raw re readlin receiv recent regular reserv reset round rpc rule
safe scheme screen sent setup signatur simpli skip softwar split statement stdout step strict strip structur style
sub success symbol symlink syntax tab tabl tag task tk top total trace trail transport treat typic usag utf various
wrapper
""",
}
WEIGHTS: Final = {stem: weight for weight, stems in _BY_WEIGHT.items() for stem in stems.split()}


def weight_of(stem: str) -> float:
    """1 for a word that is not known to be common."""
    return WEIGHTS.get(stem, 1.0)
